"""Simple negative preference optimization (SimNPO)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional.likelihood import length_normalised

__all__ = ["simnpo"]


def simnpo(nll: Tensor, length: Tensor, *, beta: float = 2.5, margin: float = 0.0) -> Tensor:
    r"""Reference-free preference loss per sequence: :math:`-\frac{2}{\beta} \log\sigma\big(\beta (L_b - \delta)\big)`.

    :math:`L_b = S_b / n_b` is the NLL per token. The gradient is :math:`-\frac{W_b}{n_b} \nabla S_b` with
    :math:`W_b = 2 / (1 + e^{\beta (L_b - \delta)})`: an answer that the model hardly knows gets little weight, however
    well the model knew it at the start, and long answers are not favoured.

    Args:
        nll: NLLs of the forget answers :math:`S`, shape ``(B,)``, sums over tokens in nats.
        length: Supervised tokens :math:`n`, shape ``(B,)``.
        beta: Inverse temperature :math:`\beta > 0`. Choose it according to the spread of :math:`L` over the forget
            rows.
        margin: Target :math:`\delta` in nats per token. The paper's margin is :math:`\gamma = \beta\delta`.

    Returns:
        Shape ``(B,)``; average over sequences. Positive and decreasing in :math:`L_b`.

    Example:
        >>> import torch
        >>> simnpo(torch.tensor([2.0794415, 2.0794415]), torch.tensor([2.0, 1.0]), beta=2.5)
        tensor([0.0574, 0.0044])

    References:
        Fan et al., *Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning*,
        arXiv:2410.07163.
    """
    return -2.0 / beta * F.logsigmoid(beta * (length_normalised(nll, length) - margin))
