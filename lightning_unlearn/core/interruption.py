"""Early end of a run: the last finite step, and the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from lightning_unlearn.core.batch_norm import running_statistics
from lightning_unlearn.core.lightning import Callback, Trainer, rank_zero_info

__all__ = ["LastFinite", "stop", "tell_checkpoint"]


class LastFinite:
    """The last step of a run at which loss and gradients were finite.

    Weights need no copy, since the run stops before an update. Running statistics do: the forward pass changes them.

    Args:
        modules: Modules of the model; those that normalize are kept.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._statistics: list[tuple[Tensor, Tensor]] = [(b, b.clone()) for b in running_statistics(modules)]

    def keep(self) -> None:
        """Remember the running statistics as they are, before a forward pass."""
        for buffer, copy in self._statistics:
            copy.copy_(buffer)

    def stop(self, method: str, trainer: Trainer, what: str) -> NoReturn:
        """Restore the running statistics, save ``last-finite.ckpt`` where checkpoints are enabled, and end the run.

        Args:
            method: Name of the method.
            trainer: Trainer of the run.
            what: What is not finite, as a clause.

        Raises:
            FloatingPointError: Always.
        """
        epoch, batch = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        for buffer, copy in self._statistics:
            buffer.copy_(copy)
        saved = ""
        if trainer.checkpoint_callback is not None:
            folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
            path = Path(folder) / "last-finite.ckpt"
            trainer.save_checkpoint(path)
            saved = f" and are saved in {path}"
        raise FloatingPointError(
            f"{method}: {what} at step {trainer.global_step} (epoch {epoch}, batch {batch}). The weights are those of "
            f"the last finite step{saved}. Lower the learning rate, set gradient_clip_val=1.0, or use a bounded "
            "objective (NPO, SimNPO)."
        )


def tell_checkpoint(trainer: Trainer, exception: BaseException) -> None:
    """Say which checkpoint an interrupted run can be resumed from.

    Args:
        trainer: Trainer of the run.
        exception: What ended it.
    """
    how = "was interrupted" if isinstance(exception, KeyboardInterrupt) else f"ended by {type(exception).__name__}"
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    paths = [getattr(c, name, "") for c in callbacks for name in ("last_model_path", "best_model_path", "ckpt_path")]
    there = sorted(
        (Path(path) for path in paths if path and Path(path).is_file()), key=lambda path: path.stat().st_mtime
    )
    if there:
        rank_zero_info(
            f"The run {how} at step {trainer.global_step}. Its last checkpoint is {there[-1]}: pass it as ckpt_path to "
            "go on. It holds what resuming needs of the model before unlearning, so keep it to yourself."
        )
    else:
        rank_zero_info(f"The run {how} at step {trainer.global_step}. It has no checkpoint to go on from.")


def stop(trainer: Trainer, reason: str) -> None:
    """Let the Trainer end the run after this step, and log why.

    Args:
        trainer: The Trainer.
        reason: What has been reached, as a clause.
    """
    if not trainer.should_stop:
        rank_zero_info(f"The run ends early, at step {trainer.global_step}: {reason}.")
    trainer.should_stop = True
