"""Weight magnitude."""

from __future__ import annotations

from torch import Tensor

__all__ = ["magnitude_score"]


def magnitude_score(theta: Tensor) -> Tensor:
    r"""Magnitude of a weight: :math:`S_i = |\theta_i|`.

    Args:
        theta: Weights :math:`\theta`.

    Returns:
        Non-negative scores of the same shape.

    Example:
        >>> import torch
        >>> magnitude_score(torch.tensor([2.0, -1.0]))
        tensor([2., 1.])

    References:
        Han et al., *Learning both Weights and Connections for Efficient Neural Networks*, arXiv:1506.02626.
    """
    return theta.abs()
