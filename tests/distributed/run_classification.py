"""Unlearns a small classifier with each method, saves the weights: `run_classification.py <launcher> <folder>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_unlearn import (
    DUCK,
    SCRUB,
    SSD,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    CFk,
    FisherForgetting,
    ForgetRetainDataModule,
    L1Sparse,
    RandomLabels,
    UGradSL,
    UGradSLPlus,
)

torch.set_num_threads(1)

METHODS: dict[str, Any] = {
    "UGradSL": lambda: UGradSL(),
    "UGradSL-sum": lambda: UGradSL(reduction="sum", p=0.9),
    "UGradSL-isolation": lambda: UGradSL(alpha=None, beta=0.3),
    "UGradSL-euclid": lambda: UGradSL(alpha=None, distance="euclid", rule="density"),
    "UGradSLPlus": lambda: UGradSLPlus(p=0.7),
    "L1Sparse": lambda: L1Sparse(gamma=1e-3),
    "RandomLabels": lambda: RandomLabels(),
    "RandomLabels-once": lambda: RandomLabels("once"),
    "SCRUB": lambda: SCRUB(alpha=0.1),
    "BadTeacher": lambda: BadTeacher(),
    "BoundaryShrink": lambda: BoundaryShrink(epsilon=1.0, clip=None),
    "BoundaryExpand": lambda: BoundaryExpand(),
    "DUCK": lambda: DUCK(target_accuracy=None),
    "CFk": lambda: CFk(1),
    "FisherForgetting": lambda: FisherForgetting(),
    "SSD": lambda: SSD(alpha=1.2),
}


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, input: Tensor) -> Tensor:
        return self.net(input)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["input"]), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input": torch.randn(6, generator=generator), "labels": int(torch.randint(0, 4, (), generator=generator))}
        for _ in range(count)
    ]


def main(launcher: str, folder: Path) -> None:
    processes = 1 if launcher == "one" else 2
    for name, make in METHODS.items():
        L.seed_everything(0, verbose=False)
        module, method = Net(), make()
        driver = "retain" if method.__class__ in (UGradSLPlus, L1Sparse, SCRUB) else "forget"
        # An edit reads all rows on every process, and SSD's importance is of batches of one size.
        size = 4 if name == "SSD" else 4 // processes
        data = ForgetRetainDataModule(rows(12, 1), rows(16, 2), batch_size=size, epoch=driver, seed=3)  # type: ignore[arg-type]
        trainer = L.Trainer(
            accelerator="cpu",
            devices=processes,
            strategy="auto" if processes == 1 else "ddp",
            callbacks=[method],
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, data)
        if trainer.is_global_zero:
            torch.save(module.state_dict(), folder / f"{launcher}-{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
