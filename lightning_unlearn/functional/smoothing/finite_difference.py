"""Hessian-vector products by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["GradientAt", "difference_step", "hessian_vector_product"]

GradientAt = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Maps a displacement of the weights to the gradient at the weights so displaced."""

_LARGEST_STEP = 1e-4


def difference_step(weight_norm: float, vector_norm: float, dtype: torch.dtype = torch.float32) -> float:
    r"""Step length along a vector for a central difference: :math:`h = \eta\, (1 + \|\theta\|_2) / \|v\|_2`.

    The error of the difference quotient grows with :math:`h^2`, and the error from rounding the weights with
    :math:`\epsilon \|\theta\| / h`, so :math:`\eta = \epsilon^{1/3}` of the weights' type. It is at most
    :math:`10^{-4}`, because a loss changes its shape over a distance much shorter than that to the origin.

    Args:
        weight_norm: :math:`\|\theta\|_2` over all weights.
        vector_norm: :math:`\|v\|_2`; 0 gives a step of 0.
        dtype: Type of the weights.

    Returns:
        The step :math:`h`.

    Example:
        >>> difference_step(1.0, 2.0)
        0.0001
    """
    relative = min(_LARGEST_STEP, torch.finfo(dtype).eps ** (1 / 3))
    return relative * (1 + weight_norm) / vector_norm if vector_norm > 0 else 0.0


def hessian_vector_product(gradient: GradientAt, vector: Sequence[Tensor], *, step: float) -> list[Tensor]:
    r"""Product of the Hessian with a vector: :math:`Hv \approx [\nabla L(\theta + hv) - \nabla L(\theta - hv)] / 2h`.

    It is exact for a quadratic loss. It needs two gradients and no second derivative, so it works if the kernels of a
    model have none, and with sharded weights.

    Args:
        gradient: Gradients at displaced weights.
        vector: :math:`v`, one tensor for each weight.
        step: :math:`h \ge 0`, see
            [`difference_step`][lightning_unlearn.functional.smoothing.finite_difference.difference_step]; 0 gives 0.

    Returns:
        One tensor for each weight.

    Example:
        >>> import torch
        >>> weights, diagonal = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0])
        >>> hessian_vector_product(lambda d: [diagonal * (weights + d[0])], [torch.tensor([1.0, 2.0])], step=0.5)
        [tensor([1., 8.])]
    """
    if step == 0:
        return [torch.zeros_like(v) for v in vector]
    above = gradient([step * v for v in vector])
    below = gradient([-step * v for v in vector])
    return [(a - b) / (2 * step) for a, b in zip(above, below, strict=True)]
