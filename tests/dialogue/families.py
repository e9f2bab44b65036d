"""Judges of several model families with tokenizers of several kinds, made offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lightning_unlearn import LitCausalLM

VOCABULARY = 700
_TEXT = [
    "You rate how satisfied the user is with the assistant in a dialogue. Rate the user's satisfaction:",
    "### Dialogue\nUSER: I want a train to Leeds.\nASSISTANT: Which day?\n\n### Answer\nRating: 3\nAnalysis: it is.",
    "Rating: 1\nRating: 2\nRating: 10\nRating: very good\nRating: very bad\nRating: yes\nRating: no",
] * 20
_SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = (  # no system message, and a turn of the user must come before each answer
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/model') }}{% endif %}"
    "{{ '<start_of_turn>' + ('user' if m['role'] == 'user' else 'model') + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(template: str | None = None, digits: bool = False, **options: Any) -> Any:
    """A tokenizer in which the space before a label is part of it, or with single digits a token of its own."""
    made = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(made, template, [], {"initial_alphabet": alphabet}, options)


def sentence_piece(template: str | None = None, scheme: str | None = "first", **options: Any) -> Any:
    """A tokenizer in the manner of SentencePiece; without a scheme it merges words, as Llama 2's code would allow."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme is None:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    tokenizer = _trained(made, template, [f"<0x{i:02X}>" for i in range(256)], {}, options)
    if template is None:
        bos = ("<s>", tokenizer.bos_token_id)
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", **options)
    return tokenizer


def _trained(made: Any, template: str | None, more: list[str], training: dict, options: dict) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*_SPECIAL, *more], show_progress=False, **training
    )
    made.train_from_iterator(_TEXT, trainer)
    chat = {"chat_template": template} if template else {}
    end = "<|im_end|>" if template in (CHATML, THINKING) else "</s>"
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=end, **chat, **options)


_SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED: dict[str, Any] = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_LAYERS = ["sliding_attention", "full_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, **_TOKENS),
    "qwen2": lambda: Qwen2Config(**_GROUPED, **_TOKENS),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8, **_TOKENS),
    "gemma3": lambda: Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=64, layer_types=_LAYERS, **_TOKENS),
    "phi": lambda: PhiConfig(**_SIZES, intermediate_size=64, **_TOKENS),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=48, **_TOKENS),
    "neox": lambda: GPTNeoXConfig(**_SIZES, intermediate_size=64, **_TOKENS),
}


def language_model(family: str, tokenizer: Any, **changes: Any) -> LitCausalLM:
    """A tiny model with weights that tell texts apart."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return LitCausalLM(model, tokenizer=tokenizer)
