"""Batches of any type: their tensors, rows and row fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from operator import itemgetter
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_unlearn.functional.random import mixed_bits

__all__ = ["as_mapping", "map_tensors", "named_tensors", "row_count", "row_fingerprint", "rows_at", "rows_in"]

_DEPTH = 8  # of batches within batches: objects may refer to themselves


def as_mapping(batch: Any) -> Mapping[str, Any] | None:
    """The parts of a batch that have names: of a mapping, dataclass or named tuple; ``None`` where they have none."""
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    return None


def named_tensors(batch: Any, prefix: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch that has rows, with its path; also those in attributes of an object."""
    if isinstance(batch, Tensor):
        if batch.dim():
            yield prefix.removesuffix("."), batch
        return
    if depth == 0 or isinstance(batch, (str, bytes, type)):
        return
    named = as_mapping(batch)
    if named is not None:
        items: Any = named.items()
    elif isinstance(batch, (list, tuple)):
        items = enumerate(batch)
    else:
        items = getattr(batch, "__dict__", {}).items()
    for key, value in items:
        yield from named_tensors(value, f"{prefix}{key}.", depth - 1)


def row_count(batch: Any) -> int:
    """Number of rows in a batch, as `rows_in` tells it.

    Raises:
        TypeError: If the batch does not tell.
    """
    count = rows_in(batch)
    if count is None:
        raise TypeError(f"Expected a batch that holds a tensor, but got {type(batch).__name__}.")
    return count


def rows_in(batch: Any) -> int | None:
    """Number of rows in a batch, taken from the first part that has one.

    The number is the size of a tensor, or the length of an object: graphs that share tensors (``num_graphs`` of PyTorch
    Geometric, ``BatchMolGraph`` of chemprop) are counted, not their nodes.

    Returns:
        The number; ``None`` if it is unknown.
    """
    count = _first_count(batch, _DEPTH)
    if count is not None or not isinstance(batch, Sized) or isinstance(batch, (str, bytes, Mapping, tuple)):
        return count
    return len(batch)


def _first_count(batch: Any, depth: int) -> int | None:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if depth == 0 or isinstance(batch, (str, bytes, type)):
        return None
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    parts: Any = batch if isinstance(batch, (list, tuple)) else None
    if parts is None:
        named = as_mapping(batch)
        if not isinstance(batch, Mapping) and isinstance(batch, Sized):
            return len(batch)
        parts = (named if named is not None else getattr(batch, "__dict__", {})).values()
    return next((count for part in parts if (count := _first_count(part, depth - 1)) is not None), None)


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """The batch with every tensor replaced; mappings, dataclasses, named tuples and sequences keep their kind."""
    return apply_to_collection(batch, Tensor, function)


def rows_at(batch: Any, rows: Any) -> Any | None:
    """Some rows of a batch.

    Args:
        batch: A batch.
        rows: Their numbers, or a slice.

    Returns:
        The rows; ``None`` unless each tensor of the batch has one entry per row.
    """
    count = rows_in(batch)
    taken = 0

    def take(tensor: Tensor) -> Tensor:
        nonlocal taken
        taken += tensor.dim() > 0
        return tensor[rows] if tensor.dim() else tensor

    tensors = list(named_tensors(batch))
    if not tensors or any(len(tensor) != count for _, tensor in tensors):
        return None
    part = map_tensors(batch, take)
    return part if taken == len(tensors) else None  # or some are in objects that can't be taken apart


def row_fingerprint(batch: Any) -> Tensor:
    """A 64-bit fingerprint of each row's content that does not depend on padding or on the other rows.

    Args:
        batch: Tensors with the rows in dimension 0; others do not count, nor do positions where ``attention_mask`` is
            0.

    Returns:
        Shape ``(B,)``, int64.
    """
    tensors = sorted(named_tensors(batch), key=itemgetter(0))
    count = rows_in(batch) or 0
    mask = next((tensor for name, tensor in tensors if name == "attention_mask"), None)
    device = tensors[0][1].device if tensors else None
    total = torch.zeros(count, dtype=torch.int64, device=device)
    for salt, (name, tensor) in enumerate(tensors):
        if name in ("index", "attention_mask") or len(tensor) != count:
            continue
        values = _as_integers(tensor.reshape(count, -1))
        if mask is not None and values.shape == mask.shape:
            place = mask.long().cumsum(1) - 1
            values = (values + 1) * mask
        else:
            place = torch.arange(values.shape[1], device=values.device).expand_as(values)
        total = total + (values * (mixed_bits(place + (salt << 32)) | 1)).sum(1)
    return total


def _as_integers(values: Tensor) -> Tensor:
    if values.is_floating_point():
        # Bits, not values: sums of integers are exact in any order.
        return values.float().contiguous().view(torch.int32).long()
    return values.long()
