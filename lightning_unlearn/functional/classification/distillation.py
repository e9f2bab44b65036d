"""Divergence from a teacher with temperature."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.functional.kl import kl_divergence

__all__ = ["distillation"]


def distillation(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Divergence of a student from its teacher, :math:`T^2 \sum_k q_k (\log q_k - \log p_k)`.

    :math:`q = \mathrm{softmax}(z_{teacher} / T)` and :math:`p = \mathrm{softmax}(z / T)`; the factor :math:`T^2` keeps
    the scale of the gradient the same over temperatures.

    Args:
        logits: Logits of the student :math:`z`, shape ``(N, K)``.
        teacher_logits: Logits of the teacher, shape ``(N, K)``.
        temperature: :math:`T > 0`.

    Returns:
        Shape ``(N,)``, fp32, in nats. Value and gradient are 0 if student and teacher agree.

    Example:
        >>> import torch
        >>> distillation(torch.tensor([[4.0, 2.0, 0.0]]), torch.zeros(1, 3), temperature=2.0)
        tensor([1.2360])

    References:
        Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv:1503.02531.
    """
    return temperature**2 * kl_divergence(logits.float() / temperature, teacher_logits.float() / temperature)
