"""Tying of the vocabulary tables, input embeddings and output head, and what the configuration says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["state_tying", "untie_adapted"]


def state_tying(model: Any, state: Mapping[str, Tensor] | None = None) -> None:
    """Write into the configuration whether the two tables are one, which decides how the weights are read again.

    Where it says that different tables are one, a reader may overwrite one of them with the other. Where it says that
    one table is two, a reader looks for the second one and makes random numbers of it.

    Args:
        model: A model of transformers.
        state: Its weights by name, where others than its own are written; one table stands in it as one tensor.
    """
    head = model.get_output_embeddings()
    if head is None:
        return
    names = {id(child): f"{name}.weight" for name, child in model.named_modules()}
    tables = [model.get_input_embeddings(), head]
    weights = [
        child.weight if state is None else state.get(names[id(child)], getattr(child, "weight", None))
        for child in tables
    ]
    if not all(isinstance(weight, Tensor) for weight in weights):
        return
    same = weights[0] is weights[1]
    for config in (model.config.get_text_config(), model.config):
        if getattr(config, "tie_word_embeddings", same) != same:
            config.tie_word_embeddings = same


def untie_adapted(base: Any) -> None:
    """Give the output head weights of its own, where an adapter changes only one of two tied tables.

    Args:
        base: The base model of a ``PeftModel``, with its adapters.
    """
    tables = [base.get_input_embeddings(), base.get_output_embeddings()]
    inner = [getattr(table, "base_layer", getattr(table, "original_module", table)) for table in tables]
    inner = [getattr(table, "base_layer", table) for table in inner]
    if tables[1] is None or inner[0].weight is not inner[1].weight or inner == tables:
        return
    inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
    base.all_tied_weights_keys = {}
