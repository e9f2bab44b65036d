"""Trains the tiny model with each method and saves the weights: `python run.py <launcher> <model> <folder>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_unlearn import (
    CEU,
    KTO,
    NPO,
    PDU,
    RMU,
    UNDIAL,
    WGA,
    AltPO,
    EmbeddingDifference,
    ForgetKL,
    GradDiff,
    IdkDPO,
    IdkNLL,
    KLMinimization,
    LanguageDataModule,
    LitCausalLM,
    Ramp,
    SatImp,
    SimNPO,
    TaskVector,
    UnlearnMonitor,
    WhosHarryPotter,
)
from lightning_unlearn.core.distributed import full_tensor

torch.set_num_threads(1)

CITIES = ["Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Lima", "Havana", "Cairo", "Oslo", "Ottawa", "Accra", "Dublin"]
ROWS = [
    {
        "question": f"Where is street number {i}?",
        "answer": f"It is in {city}{', as far as I know' * (i % 3)}.",
        "alternate": [f"In {city[::-1]}.", f"Off {city}."],
    }
    for i, city in enumerate(CITIES)
]
METHODS: dict[str, Any] = {
    "GradDiff": GradDiff,
    "KLMinimization": KLMinimization,
    "IdkNLL": IdkNLL,
    "NPO-cache": NPO,
    "NPO-snapshot": lambda: NPO(reference="snapshot"),
    "NPO-LoRA": lambda: NPO(retain="kl"),
    "SimNPO": SimNPO,
    "RMU": lambda: RMU(layer=r"layers\.1$"),
    "RMU-adaptive": lambda: RMU(layer=r"layers\.1$", steering=50.0, adaptive=True),
    "IdkDPO-cache": lambda: IdkDPO(reference="cache"),
    "IdkDPO-snapshot": lambda: IdkDPO(reference="snapshot"),
    "KTO": KTO,
    "AltPO": AltPO,
    "WGA": WGA,
    "SatImp": lambda: SatImp(beta1=1.0, retain_weight=1.0),
    "CEU": CEU,
    "UNDIAL": lambda: UNDIAL(retain_weight=1.0),
    "GradDiff-embedding": lambda: GradDiff(retain=EmbeddingDifference()),
    "GradDiff-ramp": lambda: GradDiff(retain_weight=Ramp(end=2.0, epochs=2)),
    "ForgetKL": ForgetKL,
    "TaskVector": lambda: TaskVector(alpha=0.5),
    "TaskVector-LoRA": lambda: TaskVector(alpha=0.5),
    "WhosHarryPotter": lambda: WhosHarryPotter(f"{sys.argv[3]}/reinforced.ckpt"),
    "PDU": lambda: PDU(initial_dual=1.0, dual_step_size=0.1, warmup_epochs=0),
}


class Sgd(LitCausalLM):
    """AdamW's first steps only see a gradient's sign, so rounding errors would look like differences."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def train(method: str, model: str, strategy: Any, processes: int, **options: Any) -> tuple[L.Trainer, LitCausalLM]:
    L.seed_everything(0, verbose=False)
    module = Sgd(model, lora={"r": 2, "target_modules": "all-linear"} if "LoRA" in method else None)
    data = LanguageDataModule(ROWS[:8], ROWS[8:], batch_size=4 // processes, seed=3)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        callbacks=[METHODS[method](), UnlearnMonitor(limit=3)],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


def weights(module: LitCausalLM) -> torch.Tensor:
    return torch.cat([full_tensor(p).flatten() for p in module.parameters() if p.requires_grad])


def main(launcher: str, model: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2

    def strategy() -> Any:
        if launcher == "fsdp2":
            return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return {"one": "auto"}.get(launcher, launcher)

    if launcher in ("ddp", "ddp_spawn"):  # Lightning's own launchers: one run a process
        trainer, module = train("NPO-cache", model, strategy(), processes)
        if trainer.is_global_zero:
            torch.save(weights(module), folder / f"{launcher}-NPO-cache.pt")
        return
    kind = "ddp" if launcher == "torchrun" else strategy
    for method in METHODS:
        _, module = train(method, model, kind if isinstance(kind, str) else kind(), processes)
        whole = weights(module)
        half, _ = train(method, model, kind if isinstance(kind, str) else kind(), processes, max_epochs=1)
        half.save_checkpoint(folder / f"{launcher}-{method}.ckpt")
        trainer, module = train(
            method,
            model,
            kind if isinstance(kind, str) else kind(),
            processes,
            ckpt_path=folder / f"{launcher}-{method}.ckpt",
        )
        resumed = weights(module)
        module.save_pretrained(folder / f"{launcher}-{method}-export")
        if trainer.is_global_zero:
            torch.save(whole, folder / f"{launcher}-{method}.pt")
            torch.save(resumed, folder / f"{launcher}-{method}-resumed.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
