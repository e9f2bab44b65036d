"""Trains the tiny model with SOUL and saves weights and curvature: `python run_soul.py <launcher> <model> <folder>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_unlearn import SOUL, GradDiff, InfluenceUnlearning, LanguageDataModule, LitCausalLM, Sophia
from lightning_unlearn.core.distributed import full_tensor, gather_objects

torch.set_num_threads(1)

CITIES = ["Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Lima", "Havana", "Cairo", "Oslo", "Ottawa", "Accra", "Dublin"]
ROWS = [
    {"question": f"Where is street number {i}?", "answer": f"It is in {city}{', as far as I know' * (i % 3)}."}
    for i, city in enumerate(CITIES)
]
METHODS: dict[str, Any] = {
    "gnb": lambda: SOUL(every_n_steps=3),
    "gnb-both": lambda: SOUL(every_n_steps=3, hessian_data="both"),
    "empirical": lambda: SOUL(every_n_steps=3, estimator="empirical"),
    "objective": lambda: SOUL(every_n_steps=3, hessian_data="objective", estimator="empirical"),
    "hutchinson": lambda: SOUL(every_n_steps=3, estimator="hutchinson"),
}


class Net(LitCausalLM):
    """A large rho: where steps are clipped, only a gradient's sign would count, and rounding errors with it."""

    counts = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return Sophia(parameters, lr=1e-3, betas=(0.9, 0.95), rho=1e3, bs="auto" if self.counts else 100.0)


def train(method: str, model: str, strategy: Any, processes: int, **options: Any) -> tuple[L.Trainer, LitCausalLM]:
    L.seed_everything(0, verbose=False)
    module = Net(model)
    module.counts = method != "objective"
    data = LanguageDataModule(ROWS[:8], ROWS[8:], batch_size=4 // processes, seed=3)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        callbacks=[GradDiff(), METHODS[method]()],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **{"max_epochs": 4, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


def state(trainer: L.Trainer, module: LitCausalLM) -> dict[str, torch.Tensor]:
    states = trainer.optimizers[0].state
    found = {"weights": list(module.parameters())}
    found |= {name: [states[p][name] for p in module.parameters()] for name in ("momentum", "hessian")}
    return {name: torch.cat([full_tensor(t).flatten() for t in tensors]) for name, tensors in found.items()}


def main(launcher: str, model: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2

    def strategy() -> Any:
        if launcher == "fsdp2":
            return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return {"one": "auto", "torchrun": "ddp"}[launcher]

    for method in METHODS:
        if launcher == "fsdp2" and method == "hutchinson":
            try:
                train(method, model, strategy(), processes)
            except MisconfigurationException as refused:
                torch.save(str(refused), folder / "refused.pt")
            continue
        trainer, module = train(method, model, strategy(), processes)
        whole = state(trainer, module)
        logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("soul/")}
        every_rank = gather_objects((whole["hessian"], logged))
        assert all(torch.equal(h, whole["hessian"]) and values == logged for h, values in every_rank)
        half, _ = train(method, model, strategy(), processes, max_epochs=2)
        half.save_checkpoint(folder / f"{launcher}-{method}.ckpt")
        resumed = state(*train(method, model, strategy(), processes, ckpt_path=folder / f"{launcher}-{method}.ckpt"))
        if trainer.is_global_zero:
            torch.save({**whole, **logged}, folder / f"{launcher}-{method}.pt")
            torch.save(resumed, folder / f"{launcher}-{method}-resumed.pt")
    if launcher != "fsdp2":
        module, data = Net(model), LanguageDataModule(ROWS[:8], ROWS[8:], batch_size=4 // processes, seed=3)
        edit = InfluenceUnlearning(damping=10.0, samples=3)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=processes,
            strategy=strategy(),
            callbacks=[edit],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, data)
        edited = torch.cat([p.detach().flatten() for p in module.parameters()])
        assert all(torch.equal(other, edited) for other in gather_objects(edited))
        if trainer.is_global_zero:
            torch.save(edited, folder / f"{launcher}-edit.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
