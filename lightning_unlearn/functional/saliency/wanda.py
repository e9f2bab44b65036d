"""Wanda score: magnitude times input norm."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["top_of_each_row", "wanda_score"]

_CHUNK = 1 << 22


def wanda_score(weight: Tensor, input_norm: Tensor) -> Tensor:
    r"""Magnitude of a weight times the norm of its input: :math:`S_{ij} = |W_{ij}|\, \lVert X_j \rVert_2`.

    Args:
        weight: Weight :math:`W` of a linear layer, shape ``(out, in)``.
        input_norm: Norm of each input feature over all tokens, :math:`\lVert X_j \rVert_2`, shape ``(in,)``.

    Returns:
        Non-negative scores, shape ``(out, in)``; they are compared within an output row.

    Example:
        >>> import torch
        >>> wanda_score(torch.tensor([[2.0, -1.0]]), torch.tensor([1.0, 3.0]))
        tensor([[2., 3.]])

    References:
        Sun et al., *A Simple and Effective Pruning Approach for Large Language Models*, arXiv:2306.11695.
    """
    return weight.abs() * input_norm


def top_of_each_row(scores: Tensor, density: float) -> Tensor:
    """Mark the ``floor(density * in)`` largest scores of each row; among equal scores, the first.

    Args:
        scores: Shape ``(out, in)``.
        density: Fraction to mark, in [0, 1].

    Returns:
        Boolean, shape ``(out, in)``.

    Example:
        >>> import torch
        >>> top_of_each_row(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    k, rows = int(density * scores.shape[1]), max(1, _CHUNK // max(1, scores.shape[1]))
    for part, marks in zip(scores.split(rows), mask.split(rows), strict=True):
        marks.scatter_(1, part.argsort(dim=1, descending=True, stable=True)[:, :k], True)
    return mask
