"""Gradient accumulation at the end of an epoch, and the last batch of a run."""

from __future__ import annotations

import math

from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.lightning import LightningModule, Trainer

__all__ = ["full_window", "is_last_batch"]


def full_window(trainer: Trainer, module: LightningModule, batch_idx: int) -> float:
    """Factor of the loss that makes an update the mean over the batches it accumulates.

    Lightning divides each loss by ``accumulate_grad_batches``, even if the epoch ends before that many batches. If the
    end of an epoch is known only at its last batch, as in a stream, the gradients of the earlier batches are rescaled
    here.

    Args:
        trainer: The trainer.
        module: The module that trains.
        batch_idx: Number of the batch in its epoch.

    Returns:
        1, except for the batches of a window that the end of the epoch cuts short.
    """
    whole, served = trainer.accumulate_grad_batches, batch_idx % trainer.accumulate_grad_batches
    batches = trainer.num_training_batches
    if not math.isinf(batches):
        return whole / min(whole, int(batches) - batch_idx + served)
    if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return 1.0
    factor = whole / (served + 1)
    if served and factor > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                local_tensor(parameter.grad).mul_(factor)
    return factor


def is_last_batch(trainer: Trainer, batch_idx: int) -> bool:
    """Whether training ends with a batch, in ``on_train_batch_end``, as far as that is known.

    Changes made there are seen by the last validation, monitors and checkpoints. A run that is stopped otherwise has no
    such batch.

    Args:
        trainer: The trainer.
        batch_idx: Number of the batch in its epoch.
    """
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.max_epochs in (None, -1) or trainer.current_epoch + 1 < trainer.max_epochs:
        return False
    return trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
