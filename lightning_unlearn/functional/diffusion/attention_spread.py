"""Attention maps of tokens, and their spread over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention_map", "attention_spread", "half_mass_area"]


def attention_map(probabilities: Sequence[Tensor], positions: Tensor, grid: tuple[int, int]) -> Tensor:
    r"""Attention of each position of the image to the given tokens.

    $$m(q) = \frac{1}{\sum_l H_l} \sum_{l,h} \sum_{c \in P} A_{lh}[q, c]$$

    Layers with fewer positions are resized to the grid.

    Args:
        probabilities: $A_l$ of each layer, shape ``(B, heads, queries, L)``; its queries are those of the grid, or
            of the grid halved one or more times, in row-major order.
        positions: The tokens $P$, boolean, shape ``(B, L)``.
        grid: Height and width of the latents.

    Returns:
        Shape ``(B, *grid)``, in [0, 1], fp32.

    Raises:
        ValueError: If there is no layer, or the positions of a layer don't fit the grid.

    Example:
        >>> attention = torch.tensor([[[[0.2, 0.8], [0.4, 0.6]]]])
        >>> attention_map([attention], torch.tensor([[True, False]]), (1, 2))
        tensor([[[0.2000, 0.4000]]])
    """
    if not probabilities:
        raise ValueError("attention_map needs the probabilities of at least one layer, but got none.")
    total, heads = torch.zeros(len(positions), *grid, device=positions.device), 0
    for layer in probabilities:
        held = (layer.float() * positions[:, None, None, :]).sum((1, 3))
        map = held.unflatten(1, _size(layer.shape[2], grid))
        # For integer size ratios, "area" repeats or averages cells, which preserves the mean.
        total += F.interpolate(map[:, None], grid, mode="area")[:, 0]
        heads += layer.shape[1]
    return total / heads


def attention_spread(maps: Tensor) -> Tensor:
    r"""Entropy of maps, relative to that of the uniform map: $-\sum_q a(q) \log a(q) / \log Q$.

    Args:
        maps: Masses, at least 0, shape ``(B, ...)`` with $Q \ge 2$ cells each; they need not sum to 1.

    Returns:
        Shape ``(B,)``, in [0, 1], fp64: 0 for a single cell, 1 for a uniform map.

    Raises:
        ValueError: If a map has no mass, or only one cell.

    Example:
        >>> attention_spread(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    shares = _shares(maps)
    return torch.special.entr(shares).sum(1) / math.log(shares.shape[1])


def half_mass_area(maps: Tensor) -> Tensor:
    """Smallest fraction of the cells that contains half of a map's mass.

    Args:
        maps: As for `attention_spread`.

    Returns:
        Shape ``(B,)``, fp64: 1/Q for a single cell, 1/2 for a uniform map.

    Raises:
        ValueError: If a map has no mass, or only one cell.

    Example:
        >>> half_mass_area(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0]]))
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    shares = _shares(maps)
    held = shares.sort(1, descending=True).values.cumsum(1)
    short = (held < 0.5 - 1e-9).sum(1)  # the sum of equal shares may round to less than one half
    return (short + 1).double() / shares.shape[1]


def _shares(maps: Tensor) -> Tensor:
    flat = maps.flatten(1).double()
    mass = flat.sum(1, keepdim=True)
    if flat.shape[1] < 2 or not bool((mass > 0).all()):
        raise ValueError(
            f"A map needs two cells or more and some mass, but one has {flat.shape[1]} cells, or sums to 0."
        )
    return flat / mass


def _size(queries: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer: the grid, halved as strided convolutions do."""
    height, width = grid
    while height * width > queries:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != queries:
        raise ValueError(f"A layer of {queries} places is no halving of the grid {grid}: give the size of the latents.")
    return height, width
