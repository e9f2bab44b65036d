"""Tiny models with random weights of families that differ after their decoder, in attention or in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 97
_SIZE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
_HEADS = {**_SIZE, "intermediate_size": 48, "num_attention_heads": 4}
_GROUPED = {**_HEADS, "num_key_value_heads": 2}
_HEAD_DIM = {**_GROUPED, "head_dim": 8}


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_GROUPED))


def _mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=6))


def _gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**_HEAD_DIM, sliding_window=6, final_logit_softcapping=2.0, query_pre_attn_scalar=8)
    return Gemma2ForCausalLM(config)


def _gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**_HEAD_DIM, sliding_window=64, query_pre_attn_scalar=8))


def _cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**_GROUPED, logit_scale=3.0))


def _granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**_GROUPED, logits_scaling=0.2))


def _opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(**_SIZE, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=16, max_position_embeddings=64)
    return OPTForCausalLM(config)


def _bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


def _mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(**_SIZE, state_size=4, expand=1))


def _rwkv() -> Any:
    from transformers import RwkvConfig, RwkvForCausalLM

    return RwkvForCausalLM(RwkvConfig(**_SIZE, attention_hidden_size=32, context_length=64))


def _recurrent_gemma() -> Any:
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    config = _HEADS | {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8, "lru_width": 32}
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**config, attention_window_size=64))


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "cohere": _cohere,
    "granite": _granite,
    "opt": _opt,
    "bloom": _bloom,
    "mamba": _mamba,
    "rwkv": _rwkv,
    "recurrent_gemma": _recurrent_gemma,
}
SHARES_PREFIXES = {"llama", "gpt2", "gemma3", "cohere", "granite", "opt", "bloom"}
"""Families whose layers keep the keys and values of all tokens of sequences as short as in tests."""


def family(name: str, scale: float = 0.3) -> Any:
    """A model of a family, with weights large enough that its tokens differ in probability."""
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model
