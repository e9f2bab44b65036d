"""Preallocated key-value cache, which grows in place and drops finished rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

__all__ = ["keep_rows", "with_room"]


class _RoomyLayer(DynamicLayer):
    """A layer of a dynamic cache that grows in place, without a copy of all it has for each token.

    Args:
        layer: The layer that it replaces.
        room: Tokens that may follow.
    """

    def __init__(self, layer: Any, room: int) -> None:
        super().__init__()
        self.device, self.dtype, self.is_initialized = layer.keys.device, layer.keys.dtype, True
        self._all: list[Tensor] = [
            torch.cat([part, part.new_empty(*part.shape[:-2], room, part.shape[-1])], -2)
            for part in (layer.keys, layer.values)
        ]
        self._length = int(layer.keys.shape[-2])
        self._show(len(layer.keys))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of further tokens."""
        end = self._length + key_states.shape[-2]
        for whole, new in zip(self._all, (key_states, value_states), strict=True):
            whole[: len(new), ..., self._length : end, :] = new
        self._length = end
        return self._show(len(key_states))

    def keep(self, sources: Sequence[int], gaps: Sequence[int], rows: int) -> None:
        """Keep the first rows, after others have been copied into the gaps among them."""
        moved, places = (torch.tensor(part, dtype=torch.long, device=self.device) for part in (sources, gaps))
        for whole in self._all:
            whole[places, ..., : self._length, :] = whole[moved, ..., : self._length, :]
        self._show(rows)

    def _show(self, rows: int) -> tuple[Tensor, Tensor]:
        keys, values = (whole[:rows, ..., : self._length, :] for whole in self._all)
        self.keys, self.values = keys, values
        return keys, values


def with_room(cache: Any, room: int) -> Any:
    """Let a cache that keeps all keys and values grow in place.

    Args:
        cache: A dynamic cache, whose layers are exchanged.
        room: Tokens that may follow.
    """
    # A layer that takes the keys and values of another one has none.
    cache.layers = [_RoomyLayer(layer, room) if layer.get_seq_length() else layer for layer in cache.layers]
    return cache


def keep_rows(cache: Any, going: Sequence[int]) -> list[int]:
    """Drop rows from a cache with room.

    The last of the remaining rows take the places of the dropped ones, so that the others need not move.

    Args:
        cache: The cache.
        going: Numbers of the rows that go on, ascending.

    Returns:
        Numbers of the rows, in the order that they now have.
    """
    count = len(going)
    staying = set(going)
    gaps = [row for row in range(count) if row not in staying]
    moved = going[count - len(gaps) :]
    order = list(range(count))
    for gap, row in zip(gaps, moved, strict=True):
        order[gap] = row
    for layer in cache.layers:
        if isinstance(layer, _RoomyLayer):
            layer.keep(moved, gaps, count)
    return order
