"""Unlearns the tiny model under each mask, saves masks and weights: `python run_masks.py <launcher> <lm> <folder>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_unlearn import (
    NPO,
    SNIP,
    WAGLE,
    GradientMask,
    LanguageDataModule,
    LayerMask,
    LitCausalLM,
    RandomMask,
    Wanda,
)
from lightning_unlearn.core.distributed import full_tensor

torch.set_num_threads(1)

CITIES = ["Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Lima", "Havana", "Cairo", "Oslo", "Ottawa", "Accra", "Dublin"]
ROWS = [
    {"question": f"Where is street number {i}?", "answer": f"It is in {city}{', as far as I know' * (i % 3)}."}
    for i, city in enumerate(CITIES)
]
MASKS: dict[str, Any] = {
    "WAGLE": lambda: WAGLE(density=0.1),
    "WAGLE-dense": lambda: WAGLE(density=0.95, gamma=1.0),  # scores of unused embeddings tie at 0 here
    "WAGLE-released": lambda: WAGLE(density=0.5, parity="released", scope="per_tensor"),
    "WAGLE-LoRA": lambda: WAGLE(density=0.5),
    "SNIP-layers": lambda: SNIP(density=0.2, scope="per_layer"),
    "Gradient-regex": lambda: GradientMask(density=0.2, parameters=r"mlp\."),
    "Random": lambda: RandomMask(density=0.3, seed=5),
    "Wanda": lambda: Wanda(density=0.3),
    "Layer": lambda: LayerMask(r"layers\.1\.mlp"),
}


class Decaying(LitCausalLM):
    """Weight decay and momentum both move weights that have no gradient."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)


def train(kind: str, model: str, strategy: Any, processes: int, **options: Any) -> tuple[L.Trainer, Any, Any]:
    L.seed_everything(0, verbose=False)
    lora = {"r": 2, "target_modules": "all-linear"} if "LoRA" in kind else None
    module, mask = Decaying(model, lora=lora), MASKS[kind]()
    # Six rows in three batches of two: with two processes, one of them has none to read in the last round.
    data = LanguageDataModule(ROWS[:6], ROWS[6:], batch_size=4 // processes, seed=3)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        callbacks=[NPO(), mask],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module, mask


def weights(module: LitCausalLM) -> dict[str, torch.Tensor]:
    return {n: full_tensor(p) for n, p in module.named_parameters() if p.requires_grad}


def main(launcher: str, model: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2

    def strategy() -> Any:
        if launcher == "fsdp2":
            return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return {"one": "auto", "torchrun": "ddp"}[launcher]

    for kind in MASKS:
        trainer, module, mask = train(kind, model, strategy(), processes)
        mask.save_mask(folder / f"{launcher}-{kind}.safetensors")
        mine = {name: part.clone() for name, part in mask.masks.items()}
        torch.save(mine, folder / f"{launcher}-{kind}-rank{trainer.global_rank}.pt")
        whole = weights(module)
        half, _, _ = train(kind, model, strategy(), processes, max_epochs=1)
        half.save_checkpoint(folder / f"{launcher}-{kind}.ckpt")
        _, module, mask = train(kind, model, strategy(), processes, ckpt_path=folder / f"{launcher}-{kind}.ckpt")
        mask.save_mask(folder / f"{launcher}-{kind}-resumed.safetensors")
        resumed = weights(module)
        if trainer.is_global_zero:
            torch.save(whole, folder / f"{launcher}-{kind}.pt")
            torch.save(resumed, folder / f"{launcher}-{kind}-resumed.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
