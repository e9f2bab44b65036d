"""Direct preference optimization (DPO)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["dpo"]


def dpo(
    chosen_nll: Tensor,
    reference_chosen_nll: Tensor,
    rejected_nll: Tensor,
    reference_rejected_nll: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    r"""Preference loss per pair: :math:`-\frac{2}{\beta} \log\sigma(\beta \Delta_b)`.

    :math:`\Delta_b = (S^l_b - S^l_{ref,b}) - (S^w_b - S^w_{ref,b})` is the gain of the chosen answer :math:`w` over
    the rejected answer :math:`l` since the start, in nats. The likelihoods are sums over a sequence. The DPO paper has
    no factor :math:`2 / \beta`; with it, as in the NPO paper, the initial gradient weight of a sequence is 1 for every
    :math:`\beta`, and without a chosen answer it is [`npo`][lightning_unlearn.functional.objectives.npo.npo].

    Args:
        chosen_nll: NLLs of the chosen answers :math:`S^w`, shape ``(B,)``, sums over tokens in nats.
        reference_chosen_nll: The same under the frozen original model, shape ``(B,)``.
        rejected_nll: NLLs of the rejected answers :math:`S^l` to the same questions, shape ``(B,)``.
        reference_rejected_nll: The same under the frozen original model, shape ``(B,)``.
        beta: Inverse temperature :math:`\beta > 0`.

    Returns:
        Shape ``(B,)``; average over pairs. It equals :math:`2 \ln 2 / \beta` at the reference.

    Example:
        >>> import torch
        >>> start = torch.tensor([4.0, 4.0])
        >>> dpo(torch.tensor([4.0, 1.0]), start, torch.tensor([4.0, 9.0]), start, beta=0.1)
        tensor([13.8629,  7.4220])

    References:
        Rafailov et al., *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*,
        arXiv:2305.18290.
        Zhang et al., *Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning*,
        arXiv:2404.05868.
    """
    margin = (rejected_nll - reference_rejected_nll) - (chosen_nll - reference_chosen_nll)
    return -2.0 / beta * F.logsigmoid(beta * margin)
