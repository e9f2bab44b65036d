"""Resolution of weights in half precision: learning rates whose steps round to nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.lightning import Trainer, rank_zero_warn

__all__ = ["half_spacing", "warn_below_resolution"]

_SAMPLE = 4096  # weights of each tensor that are looked at


def half_spacing(weights: Tensor) -> Tensor:
    """Half the distance of each weight to its neighbours in its own type; a smaller step leaves it where it is.

    Args:
        weights: Any shape, of a floating-point type.

    Returns:
        The same shape, fp32.

    Example:
        >>> half_spacing(torch.tensor([1.0, 0.03], dtype=torch.bfloat16))
        tensor([3.9062e-03, 6.1035e-05])
    """
    info = torch.finfo(weights.dtype)
    _, exponent = torch.frexp(weights.float())
    spacing = torch.ldexp(torch.tensor(info.eps, device=weights.device), exponent - 1)
    return torch.where(weights == 0, 0.0, spacing.clamp(min=info.smallest_normal * info.eps)) / 2


def warn_below_resolution(trainer: Trainer) -> None:
    """Warn where an Adam step is too small to move most of the weights that train.

    A step of Adam is at most about the learning rate, for each weight.

    Args:
        trainer: Trainer of a run that starts.
    """
    for optimizer in trainer.optimizers:
        if "adam" not in type(optimizer).__name__.lower():
            continue
        for group in optimizer.param_groups:
            rate = float(group.get("initial_lr", group["lr"]))  # a warm-up starts at 0
            half = [p for p in group["params"] if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
            if not half or rate <= 0:
                continue
            spacings = torch.cat([half_spacing(_sample(local_tensor(parameter.detach()))) for parameter in half])
            lost = (spacings > rate).float().mean().item()
            if lost > 0.5:
                name = str(half[0].dtype).removeprefix("torch.")
                rank_zero_warn(
                    f"At a learning rate of {rate:g}, a step of {type(optimizer).__name__} is lost in rounding at "
                    f"{lost:.0%} of the {name} weights that train. Keep them in float32 (precision='bf16-mixed'), or "
                    f"raise the learning rate: at {spacings.median().item():.1e} half of them move."
                )


def _sample(weights: Tensor) -> Tensor:
    flat = weights.flatten()
    return flat[:: max(1, len(flat) // _SAMPLE)]
