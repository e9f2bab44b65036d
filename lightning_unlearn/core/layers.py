"""Layers by name, and the tensors that go through them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_unlearn.core.lightning import MisconfigurationException

__all__ = ["HOOK_NOT_CALLED", "LayerCalls", "find_layer", "stripped", "watching"]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

HOOK_NOT_CALLED = (
    "In a compiled model, a graph that was compiled before the hook was registered, as in validation, does not call "
    "it: set torch._dynamo.config.skip_nnmodule_hook_guards = False before fit."
)
"""Hint for errors where a hook on a layer was never called."""


class LayerCalls(NamedTuple):
    """Inputs and outputs of a layer, one of each a call.

    Args:
        inputs: First positional argument of each call.
        outputs: Output of each call; the first one, where a layer gives several.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def watching(layer: nn.Module) -> Iterator[LayerCalls]:
    """Collect what goes into a layer and out of it while the body runs."""
    calls = LayerCalls([], [])

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        calls.inputs.extend(args[:1])

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.outputs.append(output if isinstance(output, Tensor) else output[0])

    # Prepended: the hook of causal_lm_nll takes the positions without a label away.
    handles = (layer.register_forward_pre_hook(before, prepend=True), layer.register_forward_hook(after))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_layer(module: nn.Module, layer: str) -> tuple[str, nn.Module]:
    """The submodule of a name.

    Args:
        module: The user's module.
        layer: The end of a dotted name, or a regular expression that fits one name only.

    Returns:
        Its dotted name without wrappers, and the submodule.

    Raises:
        MisconfigurationException: If there is none, or more than one.
    """
    # A wrapper and what it wraps have the same name: the inner one, which comes later, is kept.
    named = {stripped(name): child for name, child in module.named_modules() if name}
    matches = [name for name in named if f".{name}".endswith(f".{layer}")]
    matches = matches or [name for name in named if re.search(layer, name)]
    if len(matches) != 1:
        blocks = matches or [name for name in named if re.search(r"\.\d+$", name)] or list(named)
        raise MisconfigurationException(
            f"layer={layer!r} has to name one module, but fits {len(matches) or 'none'}. "
            f"{'It fits' if matches else 'There are'} {', '.join(blocks[:8])}{' ...' if len(blocks) > 8 else ''}. "
            "Give one dotted name, or a regular expression that ends in $."
        )
    return matches[0], named[matches[0]]


def stripped(name: str) -> str:
    """A dotted name without the parts that ``torch.compile``, activation checkpointing and FSDP insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
