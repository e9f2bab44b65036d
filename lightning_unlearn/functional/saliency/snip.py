"""Connection sensitivity of SNIP."""

from __future__ import annotations

from torch import Tensor

__all__ = ["snip_score"]


def snip_score(theta: Tensor, grad: Tensor) -> Tensor:
    r"""First-order change of a loss when a weight is set to 0: :math:`S_i = |\theta_i\, g_i|`.

    Args:
        theta: Weights :math:`\theta`.
        grad: Gradient :math:`g` of the loss, same shape.

    Returns:
        Non-negative scores of the same shape.

    Example:
        >>> import torch
        >>> snip_score(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5]))
        tensor([2.0000, 0.5000])

    References:
        Lee et al., *SNIP: Single-shot Network Pruning based on Connection Sensitivity*, arXiv:1810.02340.
    """
    return (theta * grad).abs()
