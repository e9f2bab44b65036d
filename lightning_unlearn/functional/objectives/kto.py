"""Kahneman-Tversky optimization (KTO)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kto"]


def kto(
    nll: Tensor, reference_nll: Tensor, reference_point: Tensor | float = 0.0, *, desirable: bool, beta: float = 0.1
) -> Tensor:
    r"""Prospect-theoretic loss per sequence: :math:`1 - \sigma(\pm\beta (r_b - z_0))`.

    :math:`r_b = S_{ref,b} - S_b` is the log-ratio of an answer relative to the original model; the sign is + for a
    desirable answer and - for an undesirable one. This is the paper's loss with both :math:`\lambda` equal to 1. The
    loss is bounded on both sides, and the gradient vanishes for answers far from :math:`z_0`.

    Args:
        nll: NLLs of the answers under the model :math:`S`, shape ``(B,)``, sums over tokens in nats.
        reference_nll: The same under the frozen original model :math:`S_{ref}`, shape ``(B,)``.
        reference_point: :math:`z_0 \ge 0`, an estimate of the divergence from the original model in nats, a scalar
            shared by the batch. No gradient flows through it.
        desirable: Whether the answers should become more likely rather than less.
        beta: Inverse temperature :math:`\beta > 0`.

    Returns:
        Shape ``(B,)``, in (0, 1); average over sequences. It is 1/2 at the reference.

    Example:
        >>> import torch
        >>> kto(torch.tensor([4.0, 9.0]), torch.tensor([4.0, 4.0]), desirable=False, beta=0.1)
        tensor([0.5000, 0.3775])

    References:
        Ethayarajh et al., *KTO: Model Alignment as Prospect Theoretic Optimization*, arXiv:2402.01306.
    """
    gain = beta * (reference_nll - nll - torch.as_tensor(reference_point).detach())
    return 1 - torch.sigmoid(gain if desirable else -gain)
