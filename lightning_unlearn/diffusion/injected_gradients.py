"""Gradients that are computed inside ``training_step`` and passed to the optimizer through the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.distributed import mean_over_ranks, world_size
from lightning_unlearn.core.gradients import weight_gradients
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer

__all__ = ["check_gradients", "gradients", "inner_product", "loss_with_gradient", "trained"]


def check_gradients(trainer: Trainer, name: str) -> None:
    """Refuse runs in which a step can't compute whole gradients.

    Raises:
        MisconfigurationException: If weights are sharded, or gradients have to be scaled.
    """
    strategy(name, trainer, sharded=False, reason="computes whole gradients in its step")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise MisconfigurationException(
            f"{name} computes gradients in its step, where precision='16-mixed' does not scale them, so small ones "
            "would be lost. Use precision='bf16-mixed' or '32-true'."
        )


def trained(module: LightningModule) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss, averaged over all processes; 0 where it does not depend on a parameter.

    ``.grad`` is left alone.
    """
    whole = weight_gradients(loss, parameters)
    return [mean_over_ranks(g) for g in whole] if world_size() > 1 else whole


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Inner product over all parameters, a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def loss_with_gradient(value: Tensor, parameters: Sequence[Tensor], gradient: Sequence[Tensor]) -> Tensor:
    """A loss of a given value whose backward pass adds a given gradient to ``.grad``."""
    return _Inject.apply(value.detach(), list(gradient), *parameters)


class _Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: list[Tensor], *_: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        return (None, None, *(outer * g for g in ctx.gradient))
