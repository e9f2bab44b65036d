"""Kullback-Leibler divergence from the original model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["kl_divergence"]


def kl_divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    r"""Divergence of the model from the reference at each position, :math:`\sum_v p_{ref} \log (p_{ref} / p_\theta)`.

    The expectation is under the reference, as in TOFU. Value and gradient are zero where the two models agree.

    Args:
        logits: Logits of the model, shape ``(N, V)``.
        reference_logits: Logits of the frozen original model, shape ``(N, V)``.

    Returns:
        Shape ``(N,)``, fp32, in nats. Average over the supervised positions.

    Example:
        >>> import torch
        >>> kl_divergence(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]]))
        tensor([0.3090])

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_ref = F.log_softmax(reference_logits.float(), dim=-1)
    return F.kl_div(log_p, log_ref, reduction="none", log_target=True).sum(-1)
