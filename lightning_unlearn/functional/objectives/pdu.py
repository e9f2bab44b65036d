"""Primal-dual unlearning (PDU)."""

from __future__ import annotations

from torch import Tensor

__all__ = ["pdu"]


def pdu(logits: Tensor) -> Tensor:
    r"""Flattening loss per token: :math:`\big(\max_v z_v - \tfrac{1}{V} \sum_v z_v\big)^2`.

    It is 0 if all logits are equal, so that the prediction is uniform. It reads no label: it lowers the most likely
    token, whichever that is.

    Args:
        logits: Logits :math:`z` of the model at forget positions, shape ``(N, V)``, any floating type; they are
            upcast.

    Returns:
        Shape ``(N,)``, fp32; average over tokens.

    Example:
        >>> import torch
        >>> pdu(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([1.])

    References:
        Entesari et al., *Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models*,
        arXiv:2506.05314.
    """
    logits = logits.float()
    return (logits.amax(-1) - logits.mean(-1)).square()
