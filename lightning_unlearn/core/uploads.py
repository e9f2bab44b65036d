"""Uploads of checkpoints by loggers, which may come before the original model is removed from them."""

from __future__ import annotations

from typing import Any

from lightning_unlearn.core.lightning import WANDB_LOGGERS, Logger, Trainer, rank_zero_warn

__all__ = ["warn_of_uploads"]


def warn_of_uploads(trainer: Trainer, what: str) -> None:
    """Warn of loggers that upload checkpoints of a run that has not ended.

    Loggers of several services have ``log_model``: ``"all"`` uploads every checkpoint when it is saved, and so does
    ``True`` if all are kept. Otherwise ``True`` uploads them at the end, and all but W&B do so after an error, too.

    Args:
        trainer: Trainer of the run.
        what: What the checkpoints hold of the time before unlearning.
    """
    keeps_all = any(getattr(callback, "save_top_k", 0) == -1 for callback in trainer.checkpoint_callbacks)
    for logger in trainer.loggers:
        log_model = getattr(logger, "_log_model", False)
        if when := _uploads(logger, log_model, keeps_all):
            remedy = "Take log_model=False, and upload what trainer.save_checkpoint writes after the run."
            if isinstance(logger, WANDB_LOGGERS):
                remedy = (
                    "Take log_model=True with a save_top_k other than -1, which uploads them at the end, or the "
                    "callback LogArtifacts."
                )
            rank_zero_warn(
                f"{type(logger).__name__}(log_model={log_model!r}) uploads checkpoints {when}, with {what} in "
                f"them, and what is uploaded can't be rewritten. {remedy}"
            )


def _uploads(logger: Logger, log_model: Any, keeps_all: bool) -> str | None:
    """When a logger uploads checkpoints that may hold the original model, in words."""
    if log_model == "all" or (log_model is True and keeps_all):
        return "while the run goes on"
    if log_model is True and not isinstance(logger, WANDB_LOGGERS):
        return "of an interrupted run"
    return None
