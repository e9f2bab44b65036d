"""Rows that are read again and again in a run, without a trace in its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import undisturbed
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.rows import RowLoader, RunRows, row_loader
from lightning_unlearn.core.scores import Score

__all__ = ["WatchedRows", "named_rows"]


def named_rows(trainer: Trainer, name: str) -> RowLoader | None:
    """The rows of a role of the training data, or of a named set of the data module; ``None`` where there are none."""
    if name in ("forget", "retain"):
        return row_loader(trainer.train_dataloader, name)
    data = getattr(trainer, "datamodule", None)
    loaders: Mapping[str, Any] = data.set_loaders() if isinstance(data, ForgetRetainDataModule) else {}
    return row_loader(loaders, name)


class WatchedRows:
    """Rows of one set, shared by the replicas of a run.

    Args:
        trainer: Trainer of the run.
        loader: The rows.
        name: Their name, for errors.
        score: Reads likelihoods off the module.
        limit: At most so many rows, drawn once.
    """

    def __init__(self, trainer: Trainer, loader: RowLoader, name: str, score: Score, limit: int) -> None:
        self.trainer, self.score = trainer, score
        self.rows = RunRows(trainer, loader, f"StopWhenForgotten: {name} rows", limit, shows=False)

    def nll(self, module: LightningModule) -> Tensor:
        """NLL per supervised position of each row, shape ``(N,)``, the same on every process."""

        def per_position(batch: Any) -> Tensor:
            nll, length = likelihood(self.score, module, batch)
            return nll / length.clamp(min=1)

        return self.read(module, per_position)

    def read(self, module: LightningModule, reads: Callable[[Any], Tensor]) -> Tensor:
        """What a function reads of each row. A collective call.

        Args:
            module: The user's module, in evaluation mode while it is read.
            reads: ``(batch) -> (B,)``.
        """
        with undisturbed(module, drops_gradients=False), self.trainer.precision_plugin.forward_context():
            torch.manual_seed(0)  # the same noise each time, also in a resumed run, where a score draws some
            read = [reads(batch).float().cpu() for batch, _ in self.rows]
        return torch.cat(self.rows.gather(read))
