"""Negative preference optimization (NPO)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["npo"]


def npo(nll: Tensor, reference_nll: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""Negative preference loss per sequence: :math:`-\frac{2}{\beta} \log\sigma\big(\beta (S_b - S_{ref,b})\big)`.

    Its gradient is :math:`-w_b \nabla S_b` with :math:`w_b = 2 / (1 + e^{\beta (S_b - S_{ref,b})})`: gradient ascent
    (:math:`w = 1`) at the reference, which fades as an answer becomes unlikely. As :math:`\beta \to 0` it becomes
    gradient ascent plus a constant. The likelihoods are sums over a sequence, as in the paper; several released codes
    use a mean over the micro-batch, or raw logits, instead.

    Args:
        nll: NLLs of the forget answers under the model :math:`S`, shape ``(B,)``, sums over tokens in nats.
        reference_nll: The same under the frozen original model :math:`S_{ref}`, shape ``(B,)``.
        beta: Inverse temperature :math:`\beta > 0`.

    Returns:
        Shape ``(B,)``; average over sequences. It equals :math:`2 \ln 2 / \beta` at the reference.

    Example:
        >>> import torch
        >>> npo(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 1.0]), beta=0.1)
        tensor([13.8629, 10.2603])

    References:
        Zhang et al., *Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning*,
        arXiv:2404.05868.
    """
    return -2.0 / beta * F.logsigmoid(beta * (nll - reference_nll))
