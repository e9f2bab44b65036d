"""Layers by name; the names of wrappers do not count."""

from __future__ import annotations

import re

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

__all__ = ["HOOK_NOT_CALLED", "find_layer", "stripped"]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

HOOK_NOT_CALLED = (
    "In a compiled model, a graph that was compiled before the hook was registered, as in validation, does not call "
    "it: set torch._dynamo.config.skip_nnmodule_hook_guards = False before fit."
)
"""Hint for errors where a hook on a layer was never called."""


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
