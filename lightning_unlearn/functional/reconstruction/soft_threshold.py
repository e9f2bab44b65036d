"""Soft thresholding."""

from __future__ import annotations

from torch import Tensor

__all__ = ["soft_threshold"]


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Shrink values towards 0: $\mathrm{soft}(v, \theta) = \mathrm{sign}(v) \max(|v| - \theta, 0)$.

    It is the proximal operator of $\theta\lVert\cdot\rVert_1$. The sign of a complex value is its phase.

    Args:
        values: Any shape, real or complex.
        threshold: $\theta$, a number or a tensor that gets a gradient if it requires one.

    Returns:
        Same shape as ``values``.

    Example:
        >>> import torch
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
        tensor([-2.,  0.,  1.])
    """
    return values.sgn() * (values.abs() - threshold).clamp_min(0)
