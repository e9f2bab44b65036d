"""Tensors of a language model that stay in fp32 when its weights are cast to half precision."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fp32_tensors", "put_back"]

_ROTARY = r"inv_freq$|(^|\.)embed_positions$"


def fp32_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What ``from_pretrained(dtype=...)`` keeps in fp32: rotary tables, and what the model's class names.

    Args:
        model: The model, before it is cast.

    Returns:
        The tensors by name, not copied.
    """
    plain: Any = getattr(model, "get_base_model", lambda: model)()
    named = re.compile("|".join(map(re.escape, getattr(plain, "_keep_in_fp32_modules_strict", None) or ())) or "$^")
    kept = {name: b for name, b in model.named_buffers() if re.search(_ROTARY, name) or named.search(name)}
    # The data, as a cast exchanges that.
    kept |= {name: parameter.data for name, parameter in model.named_parameters() if named.search(name)}
    return {name: tensor for name, tensor in kept.items() if tensor.dtype == torch.float32}


def put_back(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Restore the tensors that a cast has changed, on their new device."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, before in kept.items():
        tensor = tensors[name]
        if tensor.dtype == torch.float32:
            continue
        whole = before.to(tensor.device)
        if isinstance(tensor, nn.Parameter):
            tensor.data = whole
        else:
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner)._buffers[attribute] = whole
