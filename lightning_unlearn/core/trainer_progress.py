"""Progress of a Trainer as lines of a log, for runs without a terminal."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning_unlearn.core.lightning import LightningModule, ProgressBar, Trainer, classes
from lightning_unlearn.core.progress import is_interactive

__all__ = ["ProgressLines", "log_progress"]

_BARS = classes("callbacks.TQDMProgressBar", "callbacks.RichProgressBar")


class ProgressLines(ProgressBar):
    """A line with epoch, batch and logged values every half minute, and one at the end of the training.

    Args:
        seconds: Time between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._written = time.monotonic()
        self._batch = 0
        self._last = ""

    def disable(self) -> None:
        """Write nothing, as on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Write again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch_idx + 1
        if self._is_due():
            self._write(self._training(trainer, trainer.current_epoch + 1, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(self._training(trainer, trainer.current_epoch, pl_module))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluating(self.validation_description, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluating(self.test_description, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluating(self.predict_description, batch_idx, dataloader_idx)

    def _training(self, trainer: Trainer, epoch: int, module: LightningModule) -> str:
        place = f"epoch {epoch}{_of(trainer.max_epochs)}, batch {self._batch}{_of(self.total_train_batches)}"
        values = {name: value for name, value in self.get_metrics(trainer, module).items() if name != "v_num"}
        numbers = [f"{name} {_number(value)}" for name, value in values.items()]
        return f"{self.train_description}: {place}{': ' if numbers else ''}{', '.join(numbers)}"

    def _evaluating(self, description: str, batch_idx: int, dataloader_idx: int) -> None:
        if self._is_due():
            loader = f", data loader {dataloader_idx + 1}" if dataloader_idx else ""
            self._write(f"{description}: batch {batch_idx + 1}{loader}")

    def _is_due(self) -> bool:
        return time.monotonic() - self._written >= self.seconds

    def _write(self, line: str) -> None:
        self._written = time.monotonic()
        if self._enabled and line != self._last:
            print(line, flush=True)
        self._last = line


def log_progress(trainer: Trainer) -> None:
    """Let a Trainer write lines in place of Lightning's bar, where that would fill a log with carriage returns.

    Args:
        trainer: The Trainer. Custom bars, and Trainers without a bar, are left as they are.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if type(callback) in _BARS and not is_interactive(sys.stdout):
            callbacks[place] = ProgressLines()


def _of(total: float | None) -> str:
    return "" if total is None or total <= 0 or math.isinf(total) else f" of {total}"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
