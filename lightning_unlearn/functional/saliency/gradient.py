"""Gradient saliency."""

from __future__ import annotations

from torch import Tensor

__all__ = ["gradient_score"]


def gradient_score(grad: Tensor) -> Tensor:
    r"""Magnitude of the gradient of the forget loss: :math:`S_i = |g_{f,i}|`.

    The absolute value is taken after the sum over all forget rows, so that contributions of opposite sign cancel.

    Args:
        grad: Gradient :math:`g_f` of the mean NLL of the forget rows.

    Returns:
        Non-negative scores of the same shape.

    Example:
        >>> import torch
        >>> gradient_score(torch.tensor([1.0, -2.0]))
        tensor([1., 2.])

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, arXiv:2310.12508.
    """
    return grad.abs()
