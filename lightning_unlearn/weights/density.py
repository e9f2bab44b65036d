"""Density of a mask by layer and kind of weight."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lightning_unlearn.core.plots import density_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DensityRow", "density_rows", "layer_of", "mask_density_figure", "mask_density_table"]

_OTHER = "–"


class DensityRow(NamedTuple):
    """The weights of one kind in one layer.

    Args:
        layer: The layer's number, or "–" for weights outside of the numbered layers.
        kind: What the weights are of, such as ``mlp.down_proj``.
        live: How many of them may move.
        total: How many there are.
    """

    layer: str
    kind: str
    live: int
    total: int

    @property
    def density(self) -> float:
        """Share that may move."""
        return self.live / max(1, self.total)

    @property
    def cells(self) -> list[str]:
        """The row in a table, with the density last."""
        return [self.layer, self.kind, str(self.live), str(self.total), f"{self.density:.4f}"]


def layer_of(name: str) -> tuple[str, str, str]:
    """Split a parameter's name at its first number: what comes before, the layer, and the kind of weight."""
    found = re.match(r"(?:(.*?)\.)?(\d+)\.(.*)", name)
    before, layer, kind = found.groups() if found else ("", _OTHER, name)
    return before or "", layer, kind.removesuffix(".weight")


def mask_density_table(masks: Mapping[str, Tensor]) -> list[DensityRow]:
    """Count the weights that may move, by layer and kind of weight.

    Args:
        masks: Boolean masks by parameter name, such as `load_mask` returns.

    Returns:
        A row for each layer and kind, in the order of the model.

    Example:
        >>> import torch
        >>> mask_density_table({"layers.0.mlp.weight": torch.tensor([True, False])})
        [DensityRow(layer='0', kind='mlp', live=1, total=2)]
    """
    return density_rows({name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()})


def density_rows(counts: Mapping[str, tuple[int, int]]) -> list[DensityRow]:
    """The same table from the numbers of live and of all weights of each parameter."""
    found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for name, (live, total) in counts.items():
        _, layer, kind = layer_of(name)
        found[layer, kind][0] += live
        found[layer, kind][1] += total
    return [DensityRow(layer, kind, live, total) for (layer, kind), (live, total) in found.items()]


def mask_density_figure(rows: Sequence[DensityRow], text: str = "#333333") -> Figure:
    """Draw the density of each kind of weight (upwards) in each layer (to the right).

    Args:
        rows: The rows of `mask_density_table`.
        text: Colour of the labels.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    layers = list(dict.fromkeys(row.layer for row in rows))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    grid = [[float("nan")] * len(layers) for _ in kinds]
    for row in rows:
        grid[kinds.index(row.kind)][layers.index(row.layer)] = row.density
    return density_figure(grid, layers, kinds, text)
