"""Tiny random models of several families of transformers, with the vocabulary of the tiny tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn import LitCausalLM

_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
_GEMMA = _SIZES | {"num_key_value_heads": 1, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SIZES | {"num_key_value_heads": 2}),
    "gemma": ("gemma", _GEMMA),
    "gemma 2": ("gemma2", _GEMMA | {"sliding_window": 8, "final_logit_softcapping": 3.0}),
    "gpt 2": ("gpt2", {"n_layer": 3, "n_head": 2, "n_embd": 16}),
    "gpt neox": ("gpt_neox", _SIZES | {"max_position_embeddings": 512}),
    "phi": ("phi", _SIZES | {"max_position_embeddings": 512}),
    "opt": ("opt", _SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 512}),
    "opt 350m": (
        "opt",
        _SIZES
        | {
            "ffn_dim": 32,
            "word_embed_proj_dim": 8,
            "do_layer_norm_before": False,
            "max_position_embeddings": 512,
        },
    ),
    "cohere": ("cohere", _SIZES | {"num_key_value_heads": 2, "logit_scale": 0.25}),
    "bloom": ("bloom", {"n_layer": 3, "n_head": 2, "hidden_size": 16}),
}


def family(name: str, folder: Path, seed: int = 0) -> LitCausalLM:
    """A random model of a family; two seeds are two models of one form."""
    kind, sizes = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](vocab_size=len(tokenizer), **sizes, **ids)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # away from norms of 1 and biases of 0, which hide mistakes
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return LitCausalLM(model, tokenizer=tokenizer)
