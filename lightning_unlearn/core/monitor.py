"""Base class of monitors: when to evaluate, the history, and logging."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.lightning import (
    CSV_LOGGERS,
    TENSORBOARD_LOGGERS,
    Callback,
    CSVLogger,
    LightningModule,
    Logger,
    Trainer,
)

__all__ = ["Monitor", "log_folder", "log_table"]


class Monitor(Callback, ABC):
    """Evaluates before the first step, after every so many epochs and at the end; logs and keeps each evaluation.

    Every metric is logged as ``eval/<name>``. ``EarlyStopping`` and ``ModelCheckpoint``, after the monitor in the list
    of callbacks, can monitor it under that name.

    A subclass supplies ``evaluate``, and ``show``, which logs tables and figures at the end.

    Args:
        every_n_epochs: Evaluate after every so many epochs; 0 evaluates before and after the run only.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        self.every_n_epochs = at_least("every_n_epochs", every_n_epochs, 0)
        self.history: list[Evaluation] = []
        """Every evaluation so far, the first one before unlearning."""

    @abstractmethod
    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Measure every set now, without logging."""

    @abstractmethod
    def show(self, logger: Logger, step: int) -> None:
        """Log tables and figures at the end; called on the first process."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model before unlearning, once: a resumed run has this evaluation in its state."""
        if not self.history:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every so many epochs, and let other callbacks monitor the numbers."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate(trainer, pl_module)
            self.log_metrics(trainer, pl_module, self.history[-1].metrics, logger=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the outcome and show it."""
        # Edits make no step, so the step number alone cannot tell that the model changed.
        if self.history[-1].step != trainer.global_step or len(self.history) == 1:
            self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self.show(logger, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far."""
        return {"history": [asdict(evaluation) for evaluation in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the evaluations of the resumed run."""
        self.history = [Evaluation.from_dict(record) for record in state_dict["history"]]

    @staticmethod
    def log_metrics(trainer: Trainer, module: LightningModule, metrics: dict[str, float], logger: bool = True) -> None:
        """Log metrics through the module, in a hook in which Lightning allows that."""
        module.log_dict(_named(metrics), logger=logger, sync_dist=trainer.world_size > 1)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        evaluation = self.evaluate(trainer, module)
        self.history.append(evaluation)
        for logger in trainer.loggers:
            logger.log_metrics(_named(evaluation.metrics), step=trainer.global_step)


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in metrics.items()}


def log_table(logger: Logger, name: str, columns: list[str], rows: list[list[str]], step: int) -> None:
    """A table, in the form that each logger can show; a ``CSVLogger`` gets a file with the last part of the name."""
    if not rows:
        return
    if isinstance(logger, TENSORBOARD_LOGGERS):
        lines = [columns, ["---"] * len(columns), *rows]
        escaped = ("|".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines)
        logger.experiment.add_text(name, "\n".join(f"|{line}|" for line in escaped), step)
    elif isinstance(logger, CSV_LOGGERS):
        file_name = f"{name.rpartition('/')[2]}.csv"
        with (log_folder(logger) / file_name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    elif hasattr(logger, "log_table"):
        logger.log_table(name, columns=columns, data=rows)


def log_folder(logger: CSVLogger) -> Path:
    """The folder of a ``CSVLogger``, which it makes late."""
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
