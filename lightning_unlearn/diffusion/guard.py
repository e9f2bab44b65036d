"""Guards while a run draws images."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_unlearn.diffusion.guards import SafeLatentDiffusion, SuppressEOT
from lightning_unlearn.diffusion.unlearn_diff_atk import UnlearnDiffAtk

__all__ = ["Guard"]

_GUARDS = {"SafeLatentDiffusion": SafeLatentDiffusion, "SuppressEOT": SuppressEOT}


class Guard(Callback):
    """Puts a guard on while ``trainer.predict`` draws images, and while ``trainer.test`` attacks. No weight changes.

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
        if guard not in _GUARDS:
            raise ValueError(f"guard must be one of {sorted(_GUARDS)}, but got {guard!r}.")
        self.guard, self.concept, self.options = guard, concept, options or {}
        self._on: AbstractContextManager[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an attack that the guard would break."""
        attacks = [c for c in trainer.callbacks if isinstance(c, UnlearnDiffAtk)]  # type: ignore[attr-defined]
        if stage == "test" and self.guard == "SafeLatentDiffusion" and attacks:
            raise MisconfigurationException(
                "SafeLatentDiffusion steers the passes of a pipeline, but UnlearnDiffAtk calls the UNet on its own. "
                "Attack SuppressEOT or an erased model, or leave one of the two callbacks out."
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the guard on."""
        self._enter(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the guard on."""
        self._enter(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the guard off."""
        self._exit()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the guard off."""
        self._exit()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the guard off."""
        self._exit()

    def _enter(self, module: LightningModule) -> None:
        guard: Any = _GUARDS[self.guard](module, self.concept, **self.options)
        guard.__enter__()
        self._on = guard

    def _exit(self) -> None:
        if self._on is not None:
            self._on.__exit__(None, None, None)
        self._on = None
