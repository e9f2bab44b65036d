"""Temporary exchange of the weights of a language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.layers import stripped
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.scores import output_head
from lightning_unlearn.language.adapters import is_peft_model, merged_copy
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["LinearWeight", "check_whole", "exchanged", "linear_weights", "merged"]


class LinearWeight(NamedTuple):
    """The weight of a linear layer.

    Args:
        name: Dotted name of the layer.
        layer: The layer.
        transposed: Whether it keeps its weight as ``(in, out)``, as ``Conv1D`` of transformers does.
    """

    name: str
    layer: nn.Module
    transposed: bool

    @property
    def value(self) -> Tensor:
        """The weight as ``(out, in)``."""
        weight = self.stored.detach()
        return weight.t().contiguous() if self.transposed else weight

    @property
    def stored(self) -> nn.Parameter:
        """The parameter of the layer."""
        weight = self.layer._parameters["weight"]
        assert weight is not None
        return weight

    def as_stored(self, weight: Tensor) -> Tensor:
        """A weight of shape ``(out, in)`` as the layer keeps it."""
        return weight.t().contiguous() if self.transposed else weight


@contextmanager
def merged(module: LitCausalLM) -> Iterator[None]:
    """Put the model with its adapters merged in the place of an adapted one, for as long as the body runs."""
    model: Any = module.model
    plain = getattr(model, "_orig_mod", model)
    if not is_peft_model(plain):
        yield
        return
    module.model = merged_copy(plain)
    try:
        yield
    finally:
        module.model = model


@contextmanager
def exchanged(weights: Iterable[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Give modules other parameters while the body runs, and restore their own, also after an exception.

    The parameters themselves are not modified. If one belongs to several modules, as with a tied output head, only the
    named modules get another.

    Args:
        weights: Module, name of its parameter, and what takes its place. Read one by one, so that they can be computed
            one by one.
    """
    kept: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    try:
        for owner, name, weight in weights:
            kept.append((owner, name, owner._parameters[name]))
            parameter = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
            owner._parameters[name] = parameter
        torch.clear_autocast_cache()
        yield
    finally:
        for owner, name, own in reversed(kept):
            owner._parameters[name] = own
        torch.clear_autocast_cache()


def check_whole(model: nn.Module) -> None:
    """Refuse weights that are quantised already, or sharded over processes.

    Raises:
        TypeError: If a weight is not floating.
        ValueError: If one is sharded.
    """
    for name, weight in model.named_parameters():
        if isinstance(weight, DTensor):
            raise ValueError(f"{name} is sharded over processes. Attack the exported model on one device.")
        if not weight.is_floating_point():
            raise TypeError(
                f"{name} is {weight.dtype}: the model is quantised already. Attack it in floating point, as "
                "LitCausalLM.save_pretrained writes it."
            )


def linear_weights(model: nn.Module, include_head: bool = False) -> list[LinearWeight]:
    """Weights of the linear layers of a model, in their order.

    Args:
        model: A model of transformers without adapters.
        include_head: Whether the output head is one of them.

    Raises:
        TypeError: If a weight is quantised already.
        ValueError: If there is none, or weights are sharded or computed from others.
    """
    from transformers.pytorch_utils import Conv1D

    head = output_head(model)
    found = [
        LinearWeight(stripped(name), layer, isinstance(layer, Conv1D))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and (include_head or layer is not head)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer, so there is no weight to change.")
    for name, layer, _ in found:
        if layer._parameters.get("weight") is None:
            raise ValueError(
                f"The weight of {name} is computed from other parameters. Remove the parametrization first."
            )
    check_whole(model)
    _warn_of_others(model, found, head)
    return found


def _warn_of_others(model: nn.Module, found: list[LinearWeight], head: nn.Module | None) -> None:
    """Warn where much of a model is outside its linear layers, as fused experts are."""
    tables = [head, *(layer for layer in model.modules() if isinstance(layer, nn.Embedding))]
    known = {id(p) for layer in tables if layer is not None for p in layer.parameters()}
    inside = {id(weight.stored) for weight in found}
    others = [p for p in model.parameters() if p.dim() > 1 and id(p) not in known | inside]
    count = sum(p.numel() for p in others)
    changed = sum(weight.stored.numel() for weight in found)
    if count > changed:
        rank_zero_warn(
            f"{count / (count + changed):.0%} of the weights of {type(model).__name__} are outside its linear layers, "
            "such as experts that are kept in one tensor. They stay as they are."
        )
