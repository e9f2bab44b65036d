"""Label smoothing with a positive or negative rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["generalized_label_smoothing", "smoothed_targets"]


def smoothed_targets(labels: Tensor, classes: int, alpha: float | Tensor) -> Tensor:
    r"""Soft target :math:`t^\alpha = (1 - \alpha)\, e_y + \frac{\alpha}{K} \mathbf 1`, which sums to 1 at any rate.

    Args:
        labels: Labels :math:`y`, shape ``(N,)``, each in ``[0, K)``.
        classes: Number of classes :math:`K`.
        alpha: Smoothing rate :math:`\alpha`, a number or one rate per row. A negative rate gives every class except the
            true one a negative weight.

    Returns:
        Shape ``(N, K)``, fp32.

    Example:
        >>> smoothed_targets(torch.tensor([0]), 3, -0.3)
        tensor([[ 1.2000, -0.1000, -0.1000]])
    """
    rate = torch.as_tensor(alpha, device=labels.device, dtype=torch.float32).reshape(-1, 1)
    return (1 - rate) * F.one_hot(labels, classes) + rate / classes


def generalized_label_smoothing(logits: Tensor, labels: Tensor, alpha: float | Tensor) -> Tensor:
    r"""Cross-entropy with a target that is smoothed at a positive or negative rate, in closed form.

    .. math:: \ell_{GLS} = (1 - \alpha)\, \ell_y + \frac{\alpha}{K} \sum_k \ell_k = \ell_y + \alpha\, (z_y - \bar z)

    :math:`\ell_k = -\log p_k`, and :math:`\bar z` is the mean logit. The gradient is :math:`p - t^\alpha`. At a
    negative rate the loss can be negative, and ascent on it lowers the margin of the true class even if
    :math:`p_y = 1` and the gradient of plain ascent is 0. ``F.cross_entropy`` silently ignores a negative
    ``label_smoothing``.

    Args:
        logits: Logits :math:`z`, shape ``(N, K)``.
        labels: Labels :math:`y`, shape ``(N,)``, or distributions :math:`t` of shape ``(N, K)``, for which
            :math:`z_y` is :math:`\sum_k t_k z_k`.
        alpha: Smoothing rate :math:`\alpha`, a number or one rate per row of shape ``(N,)``.

    Returns:
        Shape ``(N,)``, fp32, in nats.

    Example:
        >>> generalized_label_smoothing(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), -0.3)
        tensor([0.1076])

    References:
        Wei et al., *To Smooth or Not? When Label Smoothing Meets Noisy Labels*, arXiv:2106.04149.
    """
    if labels.dim() == 1:
        true = logits.gather(1, labels[:, None]).squeeze(1).float()
    else:
        true = (labels * logits.float()).sum(1)
    return token_nll(logits, labels) + alpha * (true - logits.float().mean(1))
