"""What a classifier's head sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn.core.layers import HOOK_NOT_CALLED, find_layer

__all__ = ["Calls", "find_head", "watching"]


class Calls:
    """The inputs and outputs of each call of a layer.

    Args:
        name: Name of the layer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def last(self, tensors: list[Tensor], rows: int) -> Tensor:
        """Those of the last rows that went through, one vector a row: shape ``(rows, d)``.

        Raises:
            MisconfigurationException: If the layer was not called, or gave no vector for each row.
        """
        shapes = [tuple(t.shape) for t in tensors]
        if not tensors or sum(len(t) for t in tensors) < rows or any(t.dim() < 2 for t in tensors):
            raise MisconfigurationException(
                f"Layer {self.name!r} has to be called once in a forward pass, with one vector for each of {rows} "
                f"rows, but {f'has shapes {shapes}' if tensors else 'was not called'}. Name the layer that is. "
                f"{'' if tensors else HOOK_NOT_CALLED}".rstrip()
            )
        return torch.cat(tensors)[-rows:].flatten(1)


@contextmanager
def watching(name: str, layer: nn.Module) -> Iterator[Calls]:
    """Note what goes in and out of a layer while the body runs."""
    calls = Calls(name)

    def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.inputs.append(args[0])
        calls.outputs.append(output)

    handle = layer.register_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def find_head(method: str, module: nn.Module, name: str | None) -> tuple[str, nn.Linear]:
    """The linear layer that gives the logits.

    Args:
        method: Who needs it.
        module: The user's module.
        name: Its name as [`RMU`][lightning_unlearn.RMU] takes it, or ``None`` for the last ``nn.Linear``.

    Raises:
        MisconfigurationException: If there is none.
    """
    if name is not None:
        named, head = find_layer(module, name)
        if isinstance(head, nn.Linear):
            return named, head
        raise MisconfigurationException(
            f"{method} takes a linear layer for the head, but {named!r} is a {type(head).__name__}. Name the "
            "nn.Linear that gives the logits."
        )
    linear = [(n, child) for n, child in module.named_modules() if isinstance(child, nn.Linear)]
    if not linear:
        raise MisconfigurationException(
            f"{method} looks for the head among the nn.Linear layers of {type(module).__name__}, which has none. "
            "Give the model a linear head."
        )
    return linear[-1]
