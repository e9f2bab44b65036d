"""Tokenizers, chat templates and small models of the families of language models, built on the spot."""

# ruff: noqa: E501, RUF001 - chat templates as they are, and the full-width bars of DeepSeek

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

QUESTION, ANSWER = "Where was Ada Quill born?", "Ada Quill was born in Lima."
CORPUS = [
    *(f"Where was {n} born? {n} was born in {t}." for n, t in (("Ada Quill", "Lima"), ("Boris Venn", "Oslo"))),
    "Question: Answer: user assistant system model You are a helpful assistant. Today Date: I do not know that.",
]

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DEEPSEEK = (
    "{% set ns = namespace(system_prompt='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{% set ns.system_prompt = m['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{{ 'User: ' if m['role'] == 'user' else 'Falcon: ' }}"
    "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}"
)
EOS_BETWEEN_TURNS = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else ' ASSISTANT: ' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
PHI_BETWEEN_TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% if not (loop.last and m['role'] == 'assistant') %}"
    "{{ '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def mistral(before: str, after: str, space: str) -> str:
    """Template of a version of Mistral, which differ by their spaces."""
    return (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% if m['role'] == 'user' %}"
        f"{{{{ '[INST]{before}' + m['content'] + '{after}[/INST]' }}}}"
        f"{{% else %}}{{{{ '{space}' + m['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )


@cache
def _byte_level() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet))
    return _vocabulary(tokenizer)


@cache
def _sentencepiece() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=first))
    return _vocabulary(tokenizer)


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]]
    return model["vocab"], merges


def byte_level(
    *special: str, kind: Any = None, split: str | None = None, bos: str | None = None, **names: str | None
) -> Any:
    """A byte-level tokenizer, of a class of transformers or with a pattern of its own and a token before every text."""
    vocab, merges = _byte_level()
    if kind is not None:
        fast = kind(vocab=dict(vocab), merges=list(merges), **{n: v for n, v in names.items() if v})
    else:
        tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
        tokenizer.pre_tokenizer = (
            level if split is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
        )
        tokenizer.decoder = decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{n: v for n, v in names.items() if v})
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos is not None:
        pair = [(bos, fast.convert_tokens_to_ids(bos))]
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=pair)
    return fast


def sentencepiece(*special: str, old: bool = False, rstrip: bool = False) -> Any:
    """A Llama tokenizer; an old one puts the blank before a text in its normalizer, once after every special token."""
    vocab, merges = _sentencepiece()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if old:
        tokenizer = Tokenizer(
            models.BPE(vocab=dict(vocab), merges=list(merges), byte_fallback=True, unk_token="<unk>", fuse_unk=True)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    else:
        fast = transformers.LlamaTokenizer(vocab=dict(vocab), merges=list(merges), add_bos_token=True, **names)
    fast.add_tokens([AddedToken(token, special=True, normalized=False, rstrip=rstrip) for token in special])
    return fast


def gemma() -> Any:
    """A Gemma tokenizer: SentencePiece without a blank before a text."""
    vocab, merges = _sentencepiece()
    renamed = {{"<s>": "<bos>", "</s>": "<eos>"}.get(token, token): number for token, number in vocab.items()}
    fast = transformers.GemmaTokenizer(vocab={**renamed, "<pad>": len(renamed)}, merges=list(merges))
    fast.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<start_of_turn>", "<end_of_turn>")]
    )
    return fast


@dataclass(frozen=True)
class Family:
    """A tokenizer with its template, a model, and what a row of it is.

    Args:
        tokenizer: Makes the tokenizer.
        model: Class of the model, without ``ForCausalLM``.
        template: The chat template; ``None`` for base models.
        prompt: The prompt, without the tokens that the tokenizer puts before a text.
        answer: The supervised text, with the end.
        asked: The prompt that asks for an answer, where it is another one.
        arguments: Arguments of the template.
        config: Fields of the model's config.
    """

    tokenizer: Callable[[], Any]
    model: str
    template: str | None
    prompt: str
    answer: str
    asked: str | None = None
    arguments: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def make_tokenizer(self) -> Any:
        tokenizer = self.tokenizer()
        tokenizer.chat_template = self.template
        return tokenizer

    def make_model(self, tokenizer: Any) -> Any:
        """A model of random weights that are large enough for its predictions to differ."""
        torch.manual_seed(0)
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = getattr(transformers, f"{self.model}Config")(
            **(_SMALL | {"vocab_size": len(tokenizer)} | ids | self.config)
        )
        if "num_experts_per_tok" in self.config:
            config._experts_implementation = "eager"  # the others take no float64
        model = getattr(transformers, f"{self.model}{_HEADS.get(self.model, 'ForCausalLM')}")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        return model.eval()


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_HEADS = {"GPT2": "LMHeadModel"}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_ASK = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
_DIGITS = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PLAIN = f"Question: {QUESTION}\nAnswer:"


def _chatml(*more: str, **names: Any) -> Any:
    return byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", *more, **names)


def _qwen(eos: str = "<|im_end|>", kind: Any = transformers.Qwen2Tokenizer) -> Any:
    return _chatml(kind=kind, eos_token=eos, pad_token="<|endoftext|>")


def _llama3() -> Any:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_level(
        *special, split=_DIGITS, bos="<|begin_of_text|>", bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def _deepseek() -> Any:
    names = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    return byte_level("<｜User｜>", "<｜Assistant｜>", split=_DIGITS, bos=names["bos_token"], **names)


_DATE = "Today Date: 10 Apr 2025"
_LLAMA3_HEAD = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{_DATE}\n\n<|eot_id|>"

FAMILIES: dict[str, Family] = {
    "Qwen 2": Family(_qwen, "Qwen2", CHATML, _SYSTEM + _ASK, f"{ANSWER}<|im_end|>"),
    "Qwen 2 base": Family(lambda: _qwen("<|endoftext|>"), "Qwen2", CHATML, _SYSTEM + _ASK, f"{ANSWER}<|im_end|>"),
    "Qwen 3": Family(
        _qwen,
        "Qwen3",
        QWEN3,
        _ASK + "<think>\n\n</think>\n\n",
        f"{ANSWER}<|im_end|>",
        asked=_ASK,
        config={"head_dim": 8},
    ),
    "Qwen 3 without thinking": Family(
        _qwen,
        "Qwen3",
        QWEN3,
        _ASK + "<think>\n\n</think>\n\n",
        f"{ANSWER}<|im_end|>",
        arguments={"enable_thinking": False},
        config={"head_dim": 8},
    ),
    "Qwen 3 MoE": Family(
        _qwen,
        "Qwen3Moe",
        QWEN3,
        _ASK + "<think>\n\n</think>\n\n",
        f"{ANSWER}<|im_end|>",
        arguments={"enable_thinking": False},
        config=_EXPERTS,
    ),
    "SmolLM": Family(
        lambda: _chatml(split=r"\p{N}", eos_token="<|im_end|>", pad_token="<|im_end|>"),
        "Llama",
        CHATML,
        _SYSTEM + _ASK,
        f"{ANSWER}<|im_end|>",
    ),
    "generation tags": Family(_qwen, "Qwen2", GENERATION, _ASK, f"{ANSWER}<|im_end|>"),
    "Llama 2": Family(sentencepiece, "Llama", LLAMA2, f"<s>[INST] {QUESTION} [/INST]", f" {ANSWER} </s>"),
    "Llama 3": Family(
        _llama3,
        "Llama",
        LLAMA3,
        _LLAMA3_HEAD + f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        f"{ANSWER}<|eot_id|>",
        arguments={"date_string": "10 Apr 2025"},
    ),
    "Gemma": Family(
        gemma,
        "Gemma",
        GEMMA,
        f"<bos><start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
        f"{ANSWER}<end_of_turn>",
        config={"head_dim": 8},
    ),
    "Phi 3": Family(
        lambda: sentencepiece("<|user|>", "<|assistant|>", "<|end|>", rstrip=True),
        "Phi3",
        PHI3,
        f"<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n",
        f"{ANSWER}<|end|>",
    ),
    "Mistral 1": Family(
        sentencepiece, "Mistral", mistral(" ", " ", ""), f"<s>[INST] {QUESTION} [/INST]", f"{ANSWER}</s>"
    ),
    "Mistral 3": Family(
        lambda: sentencepiece("[INST]", "[/INST]"),
        "Mistral",
        mistral(" ", "", " "),
        f"<s>[INST] {QUESTION}[/INST]",
        f" {ANSWER}</s>",
    ),
    "Mistral tekken": Family(
        lambda: byte_level(
            "<s>", "</s>", "[INST]", "[/INST]", split=_DIGITS, bos="<s>", bos_token="<s>", eos_token="</s>"
        ),
        "Mixtral",
        mistral("", "", ""),
        f"<s>[INST]{QUESTION}[/INST]",
        f"{ANSWER}</s>",
        config={"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "Zephyr": Family(sentencepiece, "Mistral", ZEPHYR, f"<|user|>\n{QUESTION}</s>\n<|assistant|>\n", f"{ANSWER}</s>"),
    "Zephyr, old file": Family(
        lambda: sentencepiece(old=True),
        "Mistral",
        ZEPHYR,
        f"<|user|>\n{QUESTION}</s>\n<|assistant|>\n",
        f"{ANSWER}</s>",
    ),
    "DeepSeek": Family(
        _deepseek,
        "Llama",
        DEEPSEEK,
        f"<｜begin▁of▁sentence｜><｜User｜>{QUESTION}<｜Assistant｜>",
        f"{ANSWER}<｜end▁of▁sentence｜>",
        asked=f"<｜begin▁of▁sentence｜><｜User｜>{QUESTION}<｜Assistant｜><think>\n",
    ),
    "Falcon": Family(
        lambda: byte_level("<|endoftext|>", split=_DIGITS, eos_token="<|endoftext|>"),
        "Falcon",
        FALCON,
        f"User: {QUESTION}\nFalcon:",
        f" {ANSWER}<|endoftext|>",
        config={"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "end between turns": Family(
        sentencepiece, "Llama", EOS_BETWEEN_TURNS, f"USER: {QUESTION} ASSISTANT:", f" {ANSWER}</s>"
    ),
    "end between turns, not eos": Family(
        lambda: byte_level("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", eos_token="<|endoftext|>"),
        "Phi",
        PHI_BETWEEN_TURNS,
        f"<|user|>{QUESTION}<|end|><|assistant|>",
        f"{ANSWER}<|end|>",
    ),
    "Llama 2 base": Family(sentencepiece, "Llama", None, _PLAIN, f" {ANSWER}</s>"),
    "Llama 2 base, old file": Family(lambda: sentencepiece(old=True), "Llama", None, _PLAIN, f" {ANSWER}</s>"),
    "GPT-2": Family(
        lambda: byte_level(
            "<|endoftext|>",
            kind=transformers.GPT2Tokenizer,
            eos_token="<|endoftext|>",
            bos_token="<|endoftext|>",
            unk_token="<|endoftext|>",
        ),
        "GPT2",
        None,
        _PLAIN,
        f" {ANSWER}<|endoftext|>",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
    "NeoX": Family(
        lambda: byte_level("<|endoftext|>", "   ", "  ", kind=transformers.GPTNeoXTokenizer, eos_token="<|endoftext|>"),
        "GPTNeoX",
        None,
        _PLAIN,
        f" {ANSWER}<|endoftext|>",
    ),
    "Mamba": Family(
        lambda: byte_level("<|endoftext|>", kind=transformers.GPTNeoXTokenizer, eos_token="<|endoftext|>"),
        "Mamba",
        None,
        _PLAIN,
        f" {ANSWER}<|endoftext|>",
        config={"state_size": 4},
    ),
    "OPT": Family(
        lambda: byte_level("<pad>", "</s>", bos="</s>", bos_token="</s>", eos_token="</s>", pad_token="<pad>"),
        "OPT",
        None,
        _PLAIN,
        f" {ANSWER}</s>",
        config={"ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "bytes without offsets": Family(
        lambda: transformers.ByT5Tokenizer(extra_ids=0), "GPTNeoX", None, _PLAIN, f" {ANSWER}</s>"
    ),
}
