"""Resuming: callbacks that begin or restore, and what checkpoints say of their run and module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning_unlearn.core.lightning import Callback, LightningModule, MisconfigurationException, Trainer

__all__ = [
    "ResumableCallback",
    "callbacks_of",
    "is_unlearning_checkpoint",
    "mark",
    "marker",
    "record_class",
    "recorded_class",
    "refuse_fine_tuning",
]

C = TypeVar("C", bound=Callback)

_KEY = "lightning_unlearn"
_CLASS_KEY = "lightning_unlearn_module"


class ResumableCallback(Callback):
    """A callback that calls exactly one of `begin` and `restore` when training starts.

    ``on_train_start`` is the first hook at which weights and checkpoint are both there under every strategy.
    A subclass that overrides it calls ``super().on_train_start`` where its state is to be made.
    """

    _state: dict[str, Any] | None = None

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Make the state of a new run."""

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Restore the state of a resumed run, as ``state_dict`` gave it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or restore."""
        state, self._state = self._state, None
        if state is None:
            self.begin(trainer, pl_module)
        else:
            self.restore(state, trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until ``on_train_start``."""
        self._state = state_dict


def callbacks_of(trainer: Trainer, kind: Callable[..., C]) -> list[C]:
    """The trainer's callbacks of one class."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]  # type: ignore[arg-type, misc]


def mark(checkpoint: dict[str, Any], method: str, global_step: int) -> None:
    """Mark a checkpoint as one of an unlearning run."""
    checkpoint[_KEY] = {"method": method, "global_step": global_step}


def marker(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The mark of an unlearning run: its method and step."""
    return checkpoint.get(_KEY)


def is_unlearning_checkpoint(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was written by a run with an unlearning callback."""
    return _KEY in checkpoint


def record_class(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Write the import path of the module's class into a checkpoint, in its ``on_save_checkpoint``."""
    checkpoint[_CLASS_KEY] = f"{type(module).__module__}.{type(module).__qualname__}"


def recorded_class(checkpoint: dict[str, Any]) -> str | None:
    """The import path that `record_class` wrote."""
    return checkpoint.get(_CLASS_KEY)


def refuse_fine_tuning(module: LightningModule, checkpoint: dict[str, Any], objective: Callable[..., Callback]) -> None:
    """Refuse to resume an unlearning run without its objective: it would fine-tune on.

    Args:
        module: The module that loads the checkpoint, in its ``on_load_checkpoint``.
        checkpoint: What it loads.
        objective: Base class of the callbacks that unlearn.

    Raises:
        MisconfigurationException: If the trainer has no such callback.
    """
    trainer = module._trainer
    if trainer is None or trainer.state.fn != "fit" or not is_unlearning_checkpoint(checkpoint):
        return
    if not callbacks_of(trainer, objective):
        name = type(module).__name__
        raise MisconfigurationException(
            "ckpt_path is a checkpoint of an unlearning run, but the Trainer has no unlearning callback: it would "
            f"fine-tune on. Add the callback that the run had, or load the weights with {name}.load_from_checkpoint "
            "and start a new run."
        )
