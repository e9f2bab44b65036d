"""Weighted gradient ascent (WGA)."""

from __future__ import annotations

from torch import Tensor

__all__ = ["wga"]


def wga(nll: Tensor, *, beta: float = 1.0) -> Tensor:
    r"""Weighted ascent per token: :math:`-\mathrm{sg}(p_t)^\beta\, \ell_t`, where :math:`p_t = e^{-\ell_t}`.

    :math:`\mathrm{sg}` stops the gradient, so the gradient is :math:`-p_t^\beta \nabla \ell_t`: ascent that fades for a
    token as it becomes unlikely. With :math:`\beta = 0` it is gradient ascent.

    Args:
        nll: NLL of each forget token :math:`\ell`, shape ``(N,)``, in nats.
        beta: Exponent :math:`\beta \ge 0` of the confidence.

    Returns:
        Shape ``(N,)``; average over tokens. Between :math:`-1 / (e \beta)` and 0 for :math:`\beta > 0`.

    Example:
        >>> import torch
        >>> wga(torch.tensor([0.6931472, 2.0794415]))
        tensor([-0.3466, -0.2599])

    References:
        Wang et al., *Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond*, arXiv:2502.19301.
    """
    return -(-beta * nll.detach()).exp() * nll
