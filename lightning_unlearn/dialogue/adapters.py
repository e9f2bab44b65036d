"""Adapters of fine-tuned judges, kept without the weights of their base model."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from lightning_unlearn.core.distributed import rank
from lightning_unlearn.language.adapters import is_peft_model
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["place_of", "save_adapter", "trained_names"]


def trained_names(module: nn.Module) -> set[str]:
    """Names of the parameters that train."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def place_of(lm: LitCausalLM) -> str:
    """Where a model comes from: an absolute path, or a hub id.

    Raises:
        ValueError: If it was given as an object without a name.
    """
    model = lm.model.get_base_model() if is_peft_model(lm.model) else lm.model
    base = lm.hparams["model"] or getattr(model.config, "_name_or_path", "")
    if not base:
        raise ValueError(
            "The judge's model was given as an object without a name, so nobody could open what is saved without its "
            "weights. Give its folder, hub id or GGUF file, or use save_pretrained, which writes whole weights."
        )
    return str(Path(base).resolve()) if Path(base).exists() else str(base)


def save_adapter(lm: LitCausalLM, folder: str | os.PathLike[str]) -> None:
    """Write the adapters of a model as a folder of PEFT, with the tokenizer.

    Args:
        lm: A model that trains adapters.
        folder: Where to; made if missing.

    Raises:
        ValueError: If it has none, or its base model has no name that the folder could be opened with.
    """
    if lm.hparams["lora"] is None:
        raise ValueError(
            "The judge has no adapters: its weights themselves train. Use save_pretrained, or pass lora={'r': 8}."
        )
    base = place_of(lm)
    if rank() != 0:
        return
    for config in lm.model.peft_config.values():
        config.base_model_name_or_path = base
    lm.model.save_pretrained(folder, save_embedding_layers=False)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(folder)
