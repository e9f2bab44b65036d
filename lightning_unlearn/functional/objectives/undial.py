"""Unlearning via self-distillation with adjusted logits (UNDIAL)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["undial"]


def undial(logits: Tensor, reference_logits: Tensor, labels: Tensor, *, beta: float = 10.0) -> Tensor:
    r"""Cross-entropy per token to the original model with the label's logit lowered: :math:`-\sum_v q_v \log p_v`.

    :math:`q = \mathrm{softmax}(z_{ref} - \beta\, \mathrm{onehot}(y))`. The gradient with respect to the logits is
    :math:`p - q`. The target is fixed, so training converges; at :math:`\beta = 0` it is self-distillation, which is
    stationary at the original model.

    Args:
        logits: Logits of the model, shape ``(N, V)``, any floating type; they are upcast.
        reference_logits: Logits of the frozen original model :math:`z_{ref}`, shape ``(N, V)``.
        labels: Labels :math:`y` to forget, shape ``(N,)``, each in ``[0, V)``.
        beta: Amount subtracted from the label's logit, :math:`\beta \ge 0`.

    Returns:
        Shape ``(N,)``, fp32, in nats; average over tokens.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> undial(logits, logits, torch.tensor([0]), beta=10.0)
        tensor([1.6764])

    References:
        Dong et al., *UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models*,
        arXiv:2402.10052.
    """
    lowered = torch.zeros_like(reference_logits, dtype=torch.float32).scatter(-1, labels[:, None], beta)
    target = (reference_logits.detach().float() - lowered).softmax(-1)
    log_p = F.log_softmax(logits.float(), dim=-1).masked_fill(target == 0, 0.0)  # avoids 0 times infinity
    return -(target * log_p).sum(-1)
