"""A module as Lightning's documentation writes one. It knows nothing of unlearning."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import trainer as trainer
from tests.helpers import weights as weights


class LitNet(L.LightningModule):
    def __init__(self, lr: float = 0.05, dropout: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9, weight_decay=0.1)


def pairs(rows: int, seed: int, batch_size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 8, generator=generator), torch.randint(0, 3, (rows,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def indexed(rows: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input": torch.randn(8, generator=generator), "labels": int(torch.randint(0, 3, (), generator=generator))}
        for _ in range(rows)
    ]


class DictNet(LitNet):
    """The same net for rows that are dicts, and so can have an index."""

    def forward(self, input: Tensor) -> Tensor:
        return self.net(input)


def seeded(kind: type[LitNet] = LitNet, **options: Any) -> LitNet:
    """The net, always with the same weights."""
    torch.manual_seed(0)
    return kind(**options)


def nll(module: LitNet, rows: int, seed: int) -> Tensor:
    """Of each row of `pairs`."""
    x, y = next(iter(pairs(rows, seed, rows)))
    with torch.no_grad():
        return nn.functional.cross_entropy(module(x), y, reduction="none")


def loaders(forget: int = 16, retain: int = 16) -> dict[str, DataLoader]:
    return {"forget": pairs(forget, seed=1), "retain": pairs(retain, seed=2)}
