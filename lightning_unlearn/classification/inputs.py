"""The inputs of a batch, where a method changes them."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_unlearn.core.scores import Batch

__all__ = ["check_not_sharded", "input_of", "with_input"]


def input_of(method: str, batch: Batch) -> Tensor:
    """The one floating-point tensor of a batch, with the rows in dimension 0.

    Args:
        method: Who needs it.
        batch: The rows of one role.

    Raises:
        MisconfigurationException: If there is none, or more than one.
    """
    found = [leaf for leaf in tree_leaves(batch) if _is_input(leaf)]
    if len(found) != 1:
        raise MisconfigurationException(
            f"{method} changes the inputs of a row, its one floating-point tensor, but rows have {len(found)} of them. "
            "Let a row be (input, label), or a dict with 'labels' and one floating-point tensor."
        )
    return found[0]


def with_input(batch: Batch, inputs: Tensor) -> Batch:
    """A batch with other inputs, as many as there are rows; everything else is the same."""
    return tree_map(lambda leaf: inputs if _is_input(leaf) else leaf, batch)


def check_not_sharded(method: str, trainer: Trainer) -> None:
    """Raise where weights are sharded.

    Raises:
        MisconfigurationException: Under ``ModelParallelStrategy``.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise MisconfigurationException(
            f"{method} needs whole weights, which ModelParallelStrategy shards. Use one device or strategy='ddp'."
        )


def _is_input(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0
