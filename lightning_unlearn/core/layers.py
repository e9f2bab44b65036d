"""Layers found by name, and hooks that collect their inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_unlearn.core.lightning import MisconfigurationException

__all__ = ["HOOK_NOT_CALLED", "LayerCalls", "decoder_layers", "find_layer", "stripped", "watching"]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

HOOK_NOT_CALLED = (
    "In a compiled model, a graph that was compiled before the hook was registered, as in validation, does not call "
    "it: set torch._dynamo.config.skip_nnmodule_hook_guards = False before fit."
)
"""Hint for errors where a hook on a layer was never called."""


class LayerCalls(NamedTuple):
    """Inputs and outputs of a layer, one of each per call.

    Args:
        inputs: First positional argument of each call.
        outputs: Output of each call; the first one, where a layer gives several.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def watching(layer: nn.Module) -> Iterator[LayerCalls]:
    """Collect the inputs and outputs of a layer while the body runs."""
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


def find_layer(module: nn.Module, layer: str | int) -> tuple[str, nn.Module]:
    """The submodule of a name.

    Args:
        module: The user's module.
        layer: The end of a dotted name, a regular expression that fits one name only, or the number of a decoder block,
            counted from 0.

    Returns:
        Its dotted name without wrappers, and the submodule.

    Raises:
        MisconfigurationException: If there is none, or more than one.
    """
    if isinstance(layer, int):
        return _block(module, layer)
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


def decoder_layers(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks, which may themselves hold a longer list of experts.

    Args:
        module: A model, or a module that has one.

    Returns:
        The outer list of as many entries as a configuration says, else the longest one; an empty one where there is
        none.
    """
    outer: dict[str, nn.ModuleList] = {}
    depths = set()
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and not any(name.startswith(f"{parent}.") for parent in outer):
            outer[name] = child
        config: Any = getattr(child, "config", None)
        depths.add(getattr(getattr(config, "get_text_config", lambda c=config: c)(), "num_hidden_layers", None))
    return max(outer.items(), key=lambda item: (len(item[1]) in depths, len(item[1])), default=("", nn.ModuleList()))


def _block(module: nn.Module, number: int) -> tuple[str, nn.Module]:
    name, blocks = decoder_layers(module)
    if not 0 <= number < len(blocks):
        raise MisconfigurationException(
            f"layer={number} has to be the number of a decoder block, but the model has {len(blocks)}"
            + (f", {stripped(name)}.0 to {stripped(name)}.{len(blocks) - 1}." if len(blocks) else ". Name the layer.")
        )
    # A wrapper and what it wraps have the same name: the inner one is kept.
    return find_layer(module, rf"^{re.escape(stripped(name))}\.{number}$")


def stripped(name: str) -> str:
    """A dotted name without the parts that ``torch.compile``, activation checkpointing and FSDP insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
