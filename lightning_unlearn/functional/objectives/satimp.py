"""Saturation and importance weighting (SatImp)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["satimp"]


def satimp(nll: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    r"""Weighted ascent per token: :math:`-\mathrm{sg}(p_t)^{\beta_1}\, \mathrm{sg}(1 - p_t)^{\beta_2}\, \ell_t`.

    :math:`p_t = e^{-\ell_t}` and :math:`\mathrm{sg}` stops the gradient. The first factor, saturation, leaves tokens
    alone that are already unlikely. The second, importance, leaves tokens alone that are certain, such as the
    rest of a word that has begun. The weight is largest at :math:`p = \beta_1 / (\beta_1 + \beta_2)`.

    Args:
        nll: NLL of each forget token :math:`\ell \ge 0`, shape ``(N,)``, in nats.
        beta1: Exponent :math:`\beta_1 \ge 0` of saturation.
        beta2: Exponent :math:`\beta_2 \ge 0` of importance.

    Returns:
        Shape ``(N,)``; average over tokens.

    Example:
        >>> import torch
        >>> satimp(torch.tensor([0.6931472, 2.0794415]))
        tensor([-1.0830e-02, -5.5527e-05])

    References:
        Yang et al., *Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning*, arXiv:2505.11953.
    """
    ell = nll.detach()
    # expm1 keeps the digits of 1 - p when p is close to 1.
    weight = (-beta1 * ell).exp() * (-torch.expm1(-ell)) ** beta2
    return -weight * nll
