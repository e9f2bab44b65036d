"""Callbacks that save a run: its place while it is under way, and its weights at the end."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.core.files import replacing, write_text
from lightning_unlearn.core.lightning import Callback, LightningModule, Trainer

__all__ = ["FinalWeights", "KeepPlace"]

_SHARE = 20  # of the time between two checkpoints, to the time that writing one takes


class KeepPlace(Callback):
    """Writes a checkpoint from time to time, in one step: a kill leaves the one before it whole.

    Writing takes at most a twentieth of the time of the run.

    Args:
        path: File to write.
        seconds: Shortest time between two checkpoints.
    """

    def __init__(self, path: str, seconds: float = 30.0) -> None:
        self.path, self.seconds = path, seconds
        self.last_model_path = ""
        """The file, once there is one; what Lightning's own callback calls it."""
        self._pause, self._last = seconds, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if it is time."""
        start = time.monotonic()
        if not trainer.strategy.broadcast(start - self._last >= self._pause):
            return
        part = f"{self.path}.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, self.path)
        self.last_model_path = self.path
        self._last = time.monotonic()
        self._pause = max(self.seconds, _SHARE * (self._last - start))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outcomes of callbacks that have one, such as where a run has stopped."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        outcomes = {}
        for callback in callbacks:
            outcome = getattr(callback, "outcome", None)
            if is_dataclass(outcome) and not isinstance(outcome, type):
                outcomes[type(callback).__name__] = {**asdict(outcome), "text": str(outcome)}
        if trainer.is_global_zero:
            write_text(Path(self.path).with_name("outcome.json"), json.dumps(outcomes) + "\n")


class FinalWeights(Callback):
    """Writes the weights when a run has ended, and nothing of the time before: no optimizer, no state of callbacks.

    Args:
        path: File to write, in the ``default_root_dir`` of the Trainer.

    Raises:
        FileExistsError: If it exists when a run starts.
    """

    def __init__(self, path: str = "unlearned.ckpt") -> None:
        self.path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to write over a file before anything is computed."""
        if self._file(trainer).exists():
            raise FileExistsError(
                f"{self._file(trainer)} exists, and the run would write over it. Move it away, or give another folder: "
                "--trainer.default_root_dir=..."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file. Callbacks that restore weights have done so in ``on_train_end``."""
        if trainer.interrupted:
            return
        file = self._file(trainer)
        part = file.with_name(f"{file.name}.part")
        trainer.save_checkpoint(part, weights_only=True)
        if trainer.is_global_zero:
            with replacing(file) as whole:
                os.replace(part, whole)

    def _file(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.path
