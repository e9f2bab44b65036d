"""Callback that attaches a guard during prediction and tests."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.lightning import Callback, LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.resume import callbacks_of
from lightning_unlearn.diffusion.guards import SafeLatentDiffusion, SuppressEOT
from lightning_unlearn.diffusion.unlearn_diff_atk import UnlearnDiffAtk

__all__ = ["Guard"]

_GUARDS = {"SafeLatentDiffusion": SafeLatentDiffusion, "SuppressEOT": SuppressEOT}


class Guard(Callback):
    """Uses a guard while ``trainer.predict`` draws images, and while ``trainer.test`` attacks. No weight changes.

    Args:
        guard: [`SafeLatentDiffusion`][lightning_unlearn.SafeLatentDiffusion] or
            [`SuppressEOT`][lightning_unlearn.SuppressEOT].
        concept: What to avoid, as the guard takes it.
        options: Further arguments of the guard, such as ``{"config": "strong"}``.

    Raises:
        ValueError: If there is no such guard, or an argument does not fit.
        MisconfigurationException: If ``SafeLatentDiffusion`` meets an attack by gradient, which calls the UNet on its
            own.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> guard = Guard("SafeLatentDiffusion", "nudity, sexual acts", {"config": "strong"})
        >>> trainer = Trainer(callbacks=[guard], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        guard: Literal["SafeLatentDiffusion", "SuppressEOT"],
        concept: str,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.guard, self.concept, self.options = one_of("guard", guard, _GUARDS), concept, options or {}
        self._entered: AbstractContextManager[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an attack that the guard does not work with."""
        if stage == "test" and self.guard == "SafeLatentDiffusion" and callbacks_of(trainer, UnlearnDiffAtk):
            raise MisconfigurationException(
                "SafeLatentDiffusion steers the passes of a pipeline, but UnlearnDiffAtk calls the UNet on its own. "
                "Attack SuppressEOT or an erased model, or leave one of the two callbacks out."
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the guard."""
        guard: Any = _GUARDS[self.guard](pl_module, self.concept, **self.options)
        guard.__enter__()
        self._entered = guard

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the guard."""
        if self._entered is not None:
            self._entered.__exit__(None, None, None)
        self._entered = None

    on_test_start, on_test_end = on_predict_start, on_predict_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the guard."""
        self.on_predict_end(trainer, pl_module)
