"""Dampening factors of selective synaptic dampening."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["synaptic_dampening"]


def synaptic_dampening(
    importance: Tensor, forget_importance: Tensor, *, alpha: float = 10.0, dampening: float = 1.0
) -> Tensor:
    r"""Factor of each weight: below 1 if the weight is far more important to the forget rows than to all rows.

    .. math:: \min(\lambda I_D / I_f,\, 1) \quad \text{where } I_f > \alpha I_D, \text{ else } 1

    Args:
        importance: Importance :math:`I_D` for all rows, of the shape of the weight.
        forget_importance: Importance :math:`I_f` for the forget rows, of the same shape.
        alpha: Ratio of importances :math:`\alpha` above which a weight is dampened.
        dampening: :math:`\lambda`; smaller values dampen more.

    Returns:
        Factors in [0, 1], of the shape of the weight.

    Example:
        >>> synaptic_dampening(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([20.0, 8.0, 0.0]))
        tensor([0.0500, 1.0000, 1.0000])

    References:
        Foster et al., *Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening*,
        arXiv:2308.07707.
    """
    selected = forget_importance > alpha * importance
    factor = (dampening * importance / forget_importance).clamp(max=1.0)
    return torch.where(selected, factor, torch.ones_like(factor))
