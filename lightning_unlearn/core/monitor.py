"""Base class of monitors: when to evaluate, the history, and logging."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.lightning import (
    CSV_LOGGERS,
    TENSORBOARD_LOGGERS,
    CSVLogger,
    LightningModule,
    Logger,
    Trainer,
    rank_zero_warn,
)
from lightning_unlearn.core.resume import callbacks_of, continues, ends
from lightning_unlearn.core.retention import PrivateState, record_checkpoints, release, seal

__all__ = ["Monitor", "log_folder", "log_table"]


class Monitor(PrivateState, ABC):
    """Evaluates before the first step, every few epochs and at the end; logs and keeps each evaluation.

    Every metric is logged as ``eval/<name>``, by a second monitor of the same class as ``eval/2/<name>``.
    ``EarlyStopping`` and ``ModelCheckpoint`` can monitor it under that name; listed before the monitor, they see the
    evaluation before the last one.

    ``history`` keeps the texts of the judged rows. Tables and checkpoints that are written after the run hide the texts
    of forget rows, unless ``show_answers`` is set.

    A subclass supplies ``evaluate``, and ``show``, which logs tables and figures at the end.

    Args:
        every_n_epochs: Number of epochs between evaluations; 0 evaluates before and after the run only.
        show_answers: Whether tables and checkpoints show the rows to forget after the run.

    Raises:
        ValueError: If the number is negative.
    """

    private: tuple[str, ...] = ("history",)

    def __init__(self, every_n_epochs: int = 1, show_answers: bool = False) -> None:
        self.show_answers = show_answers
        self.every_n_epochs = at_least("every_n_epochs", every_n_epochs, 0)
        self.history: list[Evaluation] = []
        """Every evaluation of the run so far, the first one before unlearning."""
        self.prefix = "eval/"
        """What the names of metrics begin with."""
        self._resumed = False

    @abstractmethod
    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Measure every set now, without logging."""

    @abstractmethod
    def show(self, logger: Logger, step: int) -> None:
        """Log tables and figures at the end; called on the first process."""

    @property
    def state_key(self) -> str:
        """The class, and the settings that distinguish two monitors of a run."""
        settings = self.settings()
        return self._generate_state_key(**settings) if settings else type(self).__name__

    def settings(self) -> dict[str, Any]:
        """Arguments that distinguish two monitors of one class; those with their default are left out."""
        return {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the names of the metrics."""
        number = callbacks_of(trainer, type(self)).index(self) + 1
        self.prefix = "eval/" if number == 1 else f"eval/{number}/"
        if stage == "fit":
            record_checkpoints(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model before unlearning, once: a resumed run has this evaluation in its state."""
        if not (self._resumed or continues(self, trainer, pl_module)):
            self.history = []
            self._evaluate(trainer, pl_module)
            if not self.history[0].metrics:
                rank_zero_warn(
                    f"{type(self).__name__} has nothing to measure in this run: it finds no rows under "
                    "'forget' or 'retain', no held-out sets, and no questions. Pass "
                    "trainer.fit(module, {'forget': ..., 'retain': ...}), a ForgetRetainDataModule, or questions."
                )
        self._resumed = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate at the end of an epoch where one is due, so that other callbacks can monitor the metrics."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate(trainer, pl_module)
            self.log_metrics(trainer, pl_module, self.history[-1].metrics, logger=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final model, and log tables and figures."""
        # Edits make no step, so the step number alone cannot tell that the model changed.
        if self.history[-1].step != trainer.global_step or len(self.history) == 1:
            self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self.show(logger, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide the rows to forget in the run's checkpoints."""
        ends(self, trainer, pl_module)
        release(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the checkpoints as they are, to resume the run."""
        release(trainer, interrupted=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hide the rows to forget in a checkpoint that is written after the run."""
        seal(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the evaluations of a run in which the monitor had other settings."""
        states = checkpoint.get("callbacks", {})
        if trainer.state.fn != "fit" or self.state_key in states:
            return
        name, taken = type(self).__name__, {c.state_key for c in trainer.callbacks}  # type: ignore[attr-defined]
        own = [key for key in states if key.partition("{")[0] == name and key not in taken]
        if len(own) == 1:
            self.load_state_dict(states[own[0]])
        else:
            rank_zero_warn(
                f"The checkpoint has no evaluations of this {name}: the first one in its history will be of the model "
                "as it is resumed, and not of the one before unlearning."
            )

    def public_state(self, state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The evaluations without the texts of rows to forget."""
        hidden = [asdict(Evaluation.from_dict(record).hidden()) for record in state["history"]]
        public, gone = super().public_state({**state, "history": hidden})
        told = self.show_answers or hidden == state["history"]
        gone = [name for name in gone if name != "history"] + ([] if told else ["history"])
        return {**public, "history": state["history"] if told else hidden}, gone

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far."""
        return {"history": [asdict(evaluation) for evaluation in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the evaluations of the resumed run."""
        self.history = [Evaluation.from_dict(record) for record in state_dict["history"]]
        self._resumed = bool(self.history)

    def log_metrics(
        self, trainer: Trainer, module: LightningModule, metrics: dict[str, float], logger: bool = True
    ) -> None:
        """Log metrics through the module, in a hook in which Lightning allows that."""
        module.log_dict(self._named(metrics), logger=logger, sync_dist=trainer.world_size > 1)

    def shown(self) -> list[Evaluation]:
        """The history as it may be written: with the rows to forget hidden, unless ``show_answers``."""
        return self.history if self.show_answers else [evaluation.hidden() for evaluation in self.history]

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        evaluation = self.evaluate(trainer, module)
        self.history.append(evaluation)
        named = self._named(evaluation.metrics)
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        # For callbacks that look at the end of an epoch without an evaluation, or before this one.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})

    def _named(self, metrics: dict[str, float]) -> dict[str, float]:
        return {f"{self.prefix}{name}": value for name, value in metrics.items()}


def log_table(logger: Logger, name: str, columns: list[str], rows: list[list[str]], step: int) -> None:
    """A table, in the form that each logger can show; a ``CSVLogger`` gets a file with the name after ``eval/``."""
    if not rows:
        return
    if isinstance(logger, TENSORBOARD_LOGGERS):
        lines = [columns, ["---"] * len(columns), *rows]
        escaped = ("|".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines)
        logger.experiment.add_text(name, "\n".join(f"|{line}|" for line in escaped), step)
    elif isinstance(logger, CSV_LOGGERS):
        file_name = f"{name.removeprefix('eval/').replace('/', '-')}.csv"
        with (log_folder(logger) / file_name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    elif hasattr(logger, "log_table"):
        logger.log_table(name, columns=columns, data=rows)


def log_folder(logger: CSVLogger) -> Path:
    """The folder of a ``CSVLogger``, which it makes late."""
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
