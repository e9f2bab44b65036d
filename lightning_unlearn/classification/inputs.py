"""Input tensor of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.scores import Batch

__all__ = ["input_of", "with_input"]


def input_of(method: str, batch: Batch) -> Tensor:
    """The only floating-point tensor of a batch, with the rows in dimension 0.

    Args:
        method: Name of the method, for errors.
        batch: The rows of one role.

    Raises:
        MisconfigurationException: If there is no such tensor, or more than one.
    """
    inputs = [leaf for leaf in tree_leaves(_split(batch)[0]) if _is_input(leaf)]
    if len(inputs) != 1:
        raise MisconfigurationException(
            f"{method} changes the input of a row, its one floating-point tensor, but rows have {len(inputs)} of them. "
            "Let a row be (input, label), or a dict with 'labels' and one floating-point tensor."
        )
    return inputs[0]


def with_input(batch: Batch, inputs: Tensor) -> Batch:
    """The batch with its inputs replaced by others, one for each row."""
    without_labels, joined = _split(batch)
    return joined(tree_map(lambda leaf: inputs if _is_input(leaf) else leaf, without_labels))


def _split(batch: Batch) -> tuple[Batch, Callable[[Batch], Batch]]:
    """The batch without its labels, which may also be floating-point, and a function that adds them again."""
    if isinstance(batch, Mapping):
        labels = {name: batch[name] for name in ("labels", "label") if name in batch}
        return {name: value for name, value in batch.items() if name not in labels}, lambda rest: {**rest, **labels}
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], lambda rest: _pair(type(batch), rest, batch[1])
    return batch, lambda rest: rest


def _is_input(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0


def _pair(kind: Any, inputs: Any, labels: Any) -> Any:
    return kind(inputs, labels) if hasattr(kind, "_fields") else kind((inputs, labels))  # named tuples take arguments
