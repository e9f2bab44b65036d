"""Attention norm of Forget-Me-Not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["attention_norm", "token_positions"]


def attention_norm(probabilities: Sequence[Tensor], positions: Tensor) -> Tensor:
    r"""Attention to the given tokens: $\sqrt{\sum_{l,h,q} \sum_{k \in P} A_{lhqk}^2}$ of each row.

    This is one Frobenius norm over all layers $l$, heads $h$ and positions $q$ of the image, as in the authors' code.

    Args:
        probabilities: $A_l$ of each layer, shape ``(B, heads, queries, L)``; queries and heads may differ.
        positions: The tokens $P$, boolean, shape ``(B, L)``.

    Returns:
        Shape ``(B,)``, fp32.

    Raises:
        ValueError: If there is no layer.

    Example:
        >>> attention = torch.tensor([[[[0.3, 0.4, 0.3]]]])
        >>> attention_norm([attention, attention], torch.tensor([[True, True, False]]))
        tensor([0.7071])

    References:
        Zhang et al., *Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models*, arXiv:2303.17591.
    """
    if not probabilities:
        raise ValueError("attention_norm needs the probabilities of at least one layer, but got none.")
    held = [(layer.float() * positions[:, None, None, :]).flatten(1) for layer in probabilities]
    return torch.linalg.vector_norm(torch.cat(held, 1), dim=1)


def token_positions(input_ids: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
    """Positions at which whole token sequences occur.

    Args:
        input_ids: Shape ``(B, L)``, int64.
        spans: Token ids of each sequence.

    Returns:
        Boolean, shape ``(B, L)``.

    Example:
        >>> token_positions(torch.tensor([[0, 5, 6, 5, 9]]), [[5, 6]])
        tensor([[False,  True,  True, False, False]])
    """
    positions = torch.zeros_like(input_ids, dtype=torch.bool)
    for span in spans:
        for start in range(input_ids.shape[1] - len(span) + 1):
            part = slice(start, start + len(span))
            positions[:, part] |= (input_ids[:, part] == input_ids.new_tensor(span)).all(1, keepdim=True)
    return positions
