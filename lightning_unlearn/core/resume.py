"""Resuming: callbacks that begin or restore, and the marks of a run in its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from lightning_unlearn.core.lightning import (
    AVERAGING,
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_unlearn.core.retention import PrivateState, has_begun

__all__ = [
    "ResumableCallback",
    "callbacks_of",
    "continues",
    "ends",
    "is_unlearning_checkpoint",
    "mark",
    "marker",
    "record_class",
    "recorded_class",
    "refuse_fine_tuning",
    "refuse_live_weights_without_average",
    "restore_place",
    "rewind_window",
]

C = TypeVar("C", bound=Callback)

_KEY = "lightning_unlearn"
_LAST: WeakKeyDictionary[Callback, tuple[ref[Trainer], ref[LightningModule]]] = WeakKeyDictionary()
_CLASS_KEY = "lightning_unlearn_module"


class ResumableCallback(PrivateState):
    """A callback that calls exactly one of `begin` and `restore` when training starts.

    ``on_train_start`` is the first hook at which both weights and checkpoint are loaded under every strategy. A
    subclass that overrides it calls ``super().on_train_start`` at the point where its state is made.
    """

    _state: dict[str, Any] | None = None
    _fresh = False

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Make the state of a new run."""

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Restore the state of a resumed run, as ``state_dict`` gave it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or restore."""
        self.go_on(trainer, pl_module)
        state, self._state = self._state, None
        if state is None:
            self.begin(trainer, pl_module)
        else:
            self.restore(state, trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the run, which may go on in another ``fit``."""
        ends(self, trainer, pl_module)

    def go_on(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the callback's own state for that of a checkpoint where ``fit`` continues an earlier one."""
        if self._state is None and continues(self, trainer, module):
            self._state = self.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until ``on_train_start``; that of a run that had not begun, as a tuner saves it, is none."""
        self._state = None if self._fresh else state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check whether the checkpoint is of a run that had begun."""
        self._fresh = not has_begun(checkpoint)

    def refuse_runs_without_it(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any], why: str = ""
    ) -> None:
        """Refuse to resume a run that had no such callback.

        Args:
            trainer: The trainer.
            module: Its module.
            checkpoint: What is resumed, in ``on_load_checkpoint``.
            why: What that run has done that this one would not have.

        Raises:
            MisconfigurationException: If the checkpoint has no state for this callback.
        """
        if self._fresh or trainer.state.fn != "fit" or checkpoint.get("callbacks", {}).get(self.state_key):
            return
        was = "an unlearning run" if is_unlearning_checkpoint(checkpoint) else "a run"
        raise MisconfigurationException(
            f"ckpt_path continues a run, but this checkpoint is of {was} without {type(self).__name__}"
            f"{f': {why}' if why else ''}. Resume without it, or load the weights first "
            f"({type(module).__name__}.load_from_checkpoint) and call fit without ckpt_path."
        )


def continues(callback: Callback, trainer: Trainer, module: LightningModule) -> bool:
    """Whether ``fit`` continues an earlier run of this trainer with the same callback and module.

    This is the case when ``fit`` is called a second time with a larger ``max_epochs`` and without ``ckpt_path``.
    """
    last = _LAST.get(callback)
    return trainer.global_step > 0 and last is not None and last[0]() is trainer and last[1]() is module


def ends(callback: Callback, trainer: Trainer, module: LightningModule) -> None:
    """Remember which run a callback has been in, for `continues`."""
    _LAST[callback] = ref(trainer), ref(module)


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


def refuse_live_weights_without_average(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuse to resume a run of averaged weights without a callback that averages: it would continue from the mean.

    Raises:
        MisconfigurationException: If the checkpoint has a mean of weights, and the trainer has no such callback.
    """
    if trainer.state.fn != "fit" or "averaging_state" not in checkpoint or callbacks_of(trainer, AVERAGING):
        return
    raise MisconfigurationException(
        "ckpt_path is a checkpoint of a run that averages its weights: its state_dict is the mean, and the weights to "
        "go on from are beside it. Add the callback that the run had, such as UnlearnWeightAveraging, or load the mean "
        "with load_from_checkpoint and start a new run without ckpt_path."
    )


def restore_place(trainer: Trainer) -> None:
    """Put a resumed run where its checkpoint was taken, before its first batch.

    Two cases that Lightning misses: a schedule that asks for ``trainer.estimated_stepping_batches`` makes the loaders
    before the progress of the loops is read, and they never get their states (pytorch-lightning#20550); and under
    ``max_steps`` a checkpoint of the end of an epoch is taken for one in the middle, with a batch too many.

    Loaders without a saved position start the epoch again, with a warning. There is also one where gradients that had
    been accumulated are lost.
    """
    loop = trainer.fit_loop
    if not loop.restarting or loop._combined_loader is None or loop._data_fetcher is None:
        return
    if getattr(loop, "restarted_on_epoch_end", False):  # not in every version of pytorch_lightning
        loop._restarting = loop.epoch_loop.restarting = False
        loop.update_restart_stage()
        loop.epoch_progress.increment_completed()
        return
    if loop._combined_loader_states_to_load:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)
    served, batches = loop.epoch_loop.batch_progress.current.ready, trainer.num_training_batches
    window = trainer.accumulate_grad_batches
    forgetful = {type(x).__name__ for x in loop._combined_loader.flattened if not hasattr(x, "load_state_dict")}
    if forgetful and 0 < served < batches:
        rank_zero_warn(
            f"The checkpoint was taken after {served} of {batches} batches of epoch {trainer.current_epoch}, but "
            f"loaders of the class {', '.join(sorted(forgetful))} keep no place in an epoch: the batches that are left "
            "are read from the beginning, and the result differs from that of an uninterrupted run. Use "
            "ForgetRetainDataModule, loaders with state_dict and load_state_dict (torchdata's StatefulDataLoader), or "
            "a checkpoint of the end of an epoch."
        )
    elif served % window and 0 < served < batches:
        rank_zero_warn(
            f"The checkpoint was taken between two updates, after {served % window} of accumulate_grad_batches="
            f"{window} batches, whose gradients it does not hold: the next update lacks them, and the result differs "
            "from that of an uninterrupted run. Use a checkpoint that was taken after an update, as "
            "ModelCheckpoint(every_n_train_steps=...) does, or ForgetRetainDataModule, which goes back to the first "
            "batch of the window."
        )


def rewind_window(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Rewind a checkpoint to the first batch whose gradients are not in the weights.

    Checkpoints do not hold accumulated gradients. A checkpoint between two updates is therefore set back to the first
    batch of its accumulation window, if the loader can go back too. The same holds for a checkpoint that an exception
    causes in the middle of a batch.
    """
    loop, state = trainer.fit_loop, checkpoint.get("loops", {}).get("fit_loop", {})
    loaders = loop._combined_loader.flattened if loop._combined_loader is not None else []
    if not state or not loaders or not all(hasattr(loader, "rewound") for loader in loaders):
        return
    progress = state["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    first = current["processed"] - current["processed"] % trainer.accumulate_grad_batches
    if current["processed"] >= trainer.num_training_batches or current["ready"] == first:
        return
    for name, count in current.items():
        total[name] -= count - first
        current[name] = first
    progress["is_last_batch"] = False
    loads = state["state_dict"]["combined_loader"]
    loads[:] = [loader.rewound(load, first) for loader, load in zip(loaders, loads, strict=True)]
    if loop.epoch_loop._should_check_val_epoch() and first % (trainer.val_check_batch or math.inf) == 0:
        # Lightning passes over the validation that came before this batch, and counts an update for it.
        state["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
