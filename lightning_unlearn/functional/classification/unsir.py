"""Objective for the noise of UNSIR."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["unsir_noise"]


def unsir_noise(logits: Tensor, labels: Tensor, noise: Tensor, *, penalty: float = 0.1) -> Tensor:
    r"""Loss that the noise of UNSIR minimizes, :math:`-\ell(h_\theta(N), y) + \lambda \lVert N \rVert_2^2`.

    Args:
        logits: Logits of the noise :math:`h_\theta(N)`, shape ``(N, K)``.
        labels: The class to forget :math:`y`, repeated for each row, shape ``(N,)``.
        noise: The noise, shape ``(N, ...)``.
        penalty: :math:`\lambda \ge 0`.

    Returns:
        Shape ``(N,)``, fp32.

    Example:
        >>> import torch
        >>> unsir_noise(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([[1.0, 2.0]]))
        tensor([0.0924])

    References:
        Tarun et al., *Fast Yet Effective Machine Unlearning*, arXiv:2111.08947.
    """
    return penalty * noise.float().square().flatten(1).sum(1) - token_nll(logits, labels)
