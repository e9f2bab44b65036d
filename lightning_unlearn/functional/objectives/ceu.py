"""Cross-entropy unlearning (CE-U)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["ceu"]


def ceu(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross-entropy per token to the model's own prediction without the label: :math:`-\sum_v q_v \log p_v`.

    :math:`p = \mathrm{softmax}(z)`, and :math:`q = \mathrm{softmax}(z)` with :math:`z_y := -\infty` is held fixed. The
    gradient with respect to :math:`z` is :math:`p - q`, with a norm below :math:`\sqrt 2`. The value is
    :math:`-\ln(1 - p_y) + H(q)`.

    Args:
        logits: Logits :math:`z` of the model, shape ``(N, V)``, any floating type; they are upcast.
        labels: Labels :math:`y` to forget, shape ``(N,)``, each in ``[0, V)``.

    Returns:
        Shape ``(N,)``, fp32, in nats; average over tokens. Finite however certain the model is, and even if a logit is
        :math:`-\infty` itself.

    Example:
        >>> import torch
        >>> ceu(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor([1.6765])

    References:
        Yang, *CE-U: Cross Entropy Unlearning*, arXiv:2503.01224.
    """
    logits = logits.float()
    target = logits.detach().scatter(-1, labels[:, None], -float("inf")).softmax(-1)
    log_p = F.log_softmax(logits, dim=-1).masked_fill(target == 0, 0.0)  # avoids 0 times infinity
    return -(target * log_p).sum(-1)
