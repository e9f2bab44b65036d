"""Rows of an attack, shared by the replicas of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import Replica, gather_objects, replica
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["digest", "over_replicas", "whole_weights"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_replicas(
    module: LitCausalLM, items: Sequence[Item], compute: Callable[[list[Item]], Sequence[Result]]
) -> list[Result]:
    """The results of all items, in their order on every process, each computed by one replica.

    Where weights are sharded, forward passes are collective, so every process computes all items.

    Args:
        module: The model.
        items: The same ones on every process.
        compute: Gives one result an item; not called without items.
    """
    share = Replica(0, 1) if _sharded(module) else replica(module._trainer)
    mine = list(items[share.rank :: share.total])
    parts = dict(gather_objects((share.rank, list(compute(mine)) if mine else [])))
    return [parts[number % share.total][number // share.total] for number in range(len(items))]


def whole_weights(name: str, *modules: LitCausalLM) -> None:
    """Refuse sharded weights.

    Raises:
        MisconfigurationException: If the weights of a module are sharded.
    """
    if any(map(_sharded, modules)):
        raise MisconfigurationException(
            f"{name} runs parts of the model by themselves, which needs whole weights, but they are sharded (FSDP2). "
            "Write the model with save_pretrained, and attack that folder in one process."
        )


def digest(value: Any) -> str:
    """A hash of JSON values, for settings that would be too long or that show rows."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _sharded(module: LitCausalLM) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())
