"""When a monitor measures, what it remembers, and where it shows it."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_unlearn.core.evaluation import Evaluation

__all__ = ["Monitor", "log_folder", "log_table"]


class Monitor(Callback, ABC):
    """Evaluates before the first step, after every so many epochs and at the end; logs and keeps each evaluation.

    A subclass supplies ``evaluate``, and ``show``, which logs what is seen at the end alone.

    Args:
        every_n_epochs: Evaluate after every so many epochs; 0 leaves only before and after.

    Raises:
        ValueError: If the number is negative.
    """

    prefix: ClassVar[str] = ""
    """Begins the name of every logged number."""

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs must be at least 0, but got {every_n_epochs}.")
        self.every_n_epochs = every_n_epochs
        self.history: list[Evaluation] = []
        """Every evaluation so far, the first one before unlearning."""

    @abstractmethod
    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Measure every set now, without logging."""

    @abstractmethod
    def show(self, logger: Logger, step: int) -> None:
        """Log what is seen at the end, on the first process."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model before anything is forgotten, once: a resumed run has it in its state."""
        if not self.history:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every so many epochs."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the outcome and show it."""
        # An edit makes no step, and is the one thing that happened where there is only the first evaluation.
        if self.history[-1].step != trainer.global_step or len(self.history) == 1:
            self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self.show(logger, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far."""
        return {"history": [asdict(evaluation) for evaluation in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the evaluations of the run that is resumed."""
        self.history = [Evaluation.from_dict(record) for record in state_dict["history"]]

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        evaluation = self.evaluate(trainer, module)
        self.history.append(evaluation)
        metrics = {f"{self.prefix}{name}": value for name, value in evaluation.metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def log_table(logger: Logger, name: str, columns: list[str], rows: list[list[str]], step: int) -> None:
    """A table, in the form that each logger can show; a ``CSVLogger`` gets a file with the last part of the name."""
    if not rows:
        return
    if isinstance(logger, TensorBoardLogger):
        lines = [columns, ["---"] * len(columns), *rows]
        escaped = ("|".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines)
        logger.experiment.add_text(name, "\n".join(f"|{line}|" for line in escaped), step)
    elif isinstance(logger, CSVLogger):
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
