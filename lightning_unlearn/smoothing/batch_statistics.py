"""Batch normalization statistics, re-estimated on retain rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_unlearn.core.callback import objective_score
from lightning_unlearn.core.distributed import sum_over_ranks
from lightning_unlearn.core.lightning import LightningModule, Trainer, rank_zero_warn
from lightning_unlearn.core.modes import undisturbed
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.rows import RunRows, row_loader

__all__ = ["estimate_statistics"]


def estimate_statistics(method: str, trainer: Trainer, module: LightningModule) -> None:
    """Give batch normalization the mean statistics of all batches of retain rows, under the weights as they are.

    The running statistics of the live weights do not fit averaged weights. Forget rows are not read. Layers in
    evaluation mode keep their statistics, and the rest of the module runs in evaluation mode.

    Args:
        method: Who asks, for messages.
        trainer: Trainer of the run.
        module: The user's module.
    """
    norms = [
        child
        for child in module.modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats and child.training
    ]
    if not norms:
        return
    if row_loader(trainer.train_dataloader, "retain") is None:
        rank_zero_warn(
            f"{method}: the module has batch normalization, and the run no retain rows to take the statistics of "
            f"averaged weights over. Theirs are the averages of the running statistics. Pass retain rows to fit: "
            "{'forget': ..., 'retain': ...}."
        )
        return
    score, momenta = objective_score(method, trainer), [norm.momentum for norm in norms]
    rows = RunRows.of_role(trainer, "retain", method)
    try:
        with undisturbed(module), trainer.precision_plugin.forward_context():
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the mean over batches
            for batch, counted in rows:
                before = [_copies(norm) for norm in norms]
                likelihood(score, module, batch)
                if not counted:
                    _put(norms, before)
            estimates = [_copies(norm) for norm in norms]
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.train()
    _put(norms, [_over_ranks(*estimate) for estimate in estimates])


def _copies(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    return norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()


def _over_ranks(mean: Tensor, variance: Tensor, batches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = batches.clone()
    sum_over_ranks(total)
    for statistic in (mean, variance):
        statistic.mul_(batches)
        sum_over_ranks(statistic)
        statistic.div_(total)
    return mean, variance, total


@torch.no_grad()
def _put(norms: list[_BatchNorm], values: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    for norm, value in zip(norms, values, strict=True):
        for buffer, new in zip((norm.running_mean, norm.running_var, norm.num_batches_tracked), value, strict=True):
            assert buffer is not None
            buffer.copy_(new)
