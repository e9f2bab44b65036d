"""Generation of answers, without the generation settings of the model's folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.language.batching import common_head, like_lengths
from lightning_unlearn.language.continuation import Change, Choose, continuations, likeliest
from lightning_unlearn.language.prefixes import PrefixModel, hooked_model, prefix_model
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["answer_ends", "casts_kept", "generate", "generate_all", "generate_changed"]

_INDEPENDENT: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Of each model, whether its answers are the same beside prompts of a kind."""


def generate(
    model: Any, prompt_format: PromptFormat, prompts: Sequence[Sequence[int]], max_new_tokens: int, **sampling: Any
) -> list[str]:
    """Answers of a model to prompts, up to the end of each answer.

    Only the end tokens of the model's ``generation_config`` are used: a repetition penalty, beams, and suppressed or
    forced tokens would give answers other than the model's own.

    Args:
        model: A Hugging Face causal language model.
        prompt_format: The format of the prompts, which says where an answer ends.
        prompts: Token ids of the prompts.
        max_new_tokens: Longest answer in tokens.
        **sampling: Settings of ``generate``; by default it is greedy.

    Returns:
        The answers without special tokens, one for each sequence.
    """
    tokenizer = prompt_format.tokenizer
    device = next(model.parameters()).device
    ends = answer_ends(model, prompt_format)
    pad = next((token for token in (tokenizer.pad_token_id, *ends) if token is not None), 0)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with _plain_generation(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends or None,
            **({"do_sample": False} | sampling),
        )
    return _texts(output[:, width:].tolist(), ends, prompt_format)


@torch.no_grad()
def generate_all(
    model: Any,
    prompt_format: PromptFormat,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 64,
    choose: Choose = likeliest,
    copies: int = 1,
) -> list[str]:
    """Answers of a model to many prompts, in batches of similar length.

    If the model keeps the keys and values of all tokens, the common beginning of all prompts is computed once, a prompt
    is computed once for all its copies, and finished answers are dropped. Any other model uses its own ``generate``,
    for prompts of one length or one prompt at a time if others in the batch would change its answers.

    Args:
        model: A Hugging Face causal language model, in evaluation mode.
        prompt_format: The format of the prompts, which says where an answer ends.
        prompts: Token ids of the prompts.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers generated together.
        choose: Chooses the next token of each answer; by default the most likely one. The answers to prompt ``i`` are
            the rows from ``copies * i`` on.
        copies: Answers to each prompt.

    Returns:
        The answers without special tokens, in the order of the prompts, all answers to one together.
    """
    if not prompts:
        return []
    lengths = list(map(len, prompts))
    answers: dict[int, str] = {}
    divided: Callable[[Sequence[Sequence[int]]], list[list[int]]] | None = None
    ends = answer_ends(model, prompt_format)
    with casts_kept(next(model.parameters()).device.type):
        several = len(prompts) * copies > 1 and min(lengths) > 0
        head = prompts[0][: common_head(prompts, min(lengths) - 1)]
        own = _prefix_model(model, max(lengths) + max_new_tokens, head) if several else None
        for numbers, turns in _together(lengths, copies, batch_size):
            rows = [copies * number + turn for number in numbers for turn in turns]
            asked = [prompts[number] for number in numbers]
            next_of = partial(_chosen, choose, rows)
            tokens = continuations(own, asked, max_new_tokens, ends, next_of, len(turns)) if own is not None else None
            if tokens is not None:
                answers |= zip(rows, _texts(tokens, ends, prompt_format), strict=True)
                continue
            divided = divided or (_batches_of(model, prompts) if several else _of_one_length)
            repeated = [prompt for prompt in asked for _ in turns]
            for part in divided(repeated):
                own_rows = [rows[i] for i in part]
                chosen = _Chosen(partial(_chosen, choose, own_rows))
                options = {} if choose is likeliest else {"logits_processor": [chosen]}
                texts = generate(model, prompt_format, [repeated[i] for i in part], max_new_tokens, **options)
                answers |= zip(own_rows, texts, strict=True)
    return [answers[row] for row in range(len(prompts) * copies)]


@torch.no_grad()
def generate_changed(
    model: Any,
    prompt_format: PromptFormat,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    changes: Sequence[Change],
    batch_size: int = 64,
) -> list[list[str]]:
    """Answers of a model that reads the prompts under temporary changes; one list of answers per change.

    If the model keeps the keys and values of all tokens, each prompt is read under one change after another, and the
    answers of all changes are then generated together without changes: a change must not affect the tokens after a
    prompt.

    Args:
        model: A Hugging Face causal language model, in evaluation mode.
        prompt_format: The format of the prompts, which says where an answer ends.
        prompts: Token ids of the prompts.
        max_new_tokens: Longest answer in tokens.
        changes: Changes of the model, at least one.
        batch_size: Answers generated together.
    """
    lengths = list(map(len, prompts))
    with casts_kept(next(model.parameters()).device.type):
        own = _prefix_model(model, max(lengths) + max_new_tokens) if min(lengths, default=0) > 0 else None
        answers = _read_under(own, prompt_format, prompts, max_new_tokens, changes, batch_size) if own else None
    if answers is not None:
        return [[texts[i] for texts in answers] for i in range(len(changes))]
    found = []
    for change in changes:
        with change():
            found.append(generate_all(model, prompt_format, prompts, max_new_tokens, batch_size))
    return found


def _read_under(
    model: PrefixModel,
    prompt_format: PromptFormat,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    changes: Sequence[Change],
    batch_size: int,
) -> list[list[str]] | None:
    """The answers to each prompt, one for each change; ``None`` where the cache does not keep all."""
    lengths, count = list(map(len, prompts)), max(1, batch_size // len(changes))
    ends = answer_ends(model.model, prompt_format)
    answers: dict[int, list[str]] = {}
    for numbers in like_lengths(lengths, range(len(prompts)), count * max(lengths), count):
        asked = [prompts[number] for number in numbers]
        tokens = continuations(model, asked, max_new_tokens, ends, copies=len(changes), changes=changes)
        if tokens is None:
            return None
        texts = _texts(tokens, ends, prompt_format)
        answers |= {number: texts[i * len(changes) :][: len(changes)] for i, number in enumerate(numbers)}
    return [answers[number] for number in range(len(prompts))]


def _together(lengths: Sequence[int], copies: int, batch_size: int) -> Iterator[tuple[list[int], range]]:
    """Prompts, and which of their copies, whose answers are generated together."""
    count = max(1, batch_size // copies)
    for numbers in like_lengths(lengths, range(len(lengths)), count * max(lengths), count):
        for start in range(0, copies, batch_size):
            yield numbers, range(start, min(start + batch_size, copies))


def _batches_of(model: Any, prompts: Sequence[Sequence[int]]) -> Callable[[Sequence[Sequence[int]]], list[list[int]]]:
    """How a model's own ``generate`` can batch prompts without a change of its answers.

    RecurrentGemma reads padding, as it ignores the mask; so does DeepSeek V4, which compresses groups of tokens; RWKV
    mixes the rows of a batch.

    Returns:
        A function that divides prompts into batches, given by their numbers.
    """
    if len(set(map(len, prompts))) > 1 and _is_independent(model, prompts, "longer"):
        return lambda parts: [list(range(len(parts)))]
    if _is_independent(model, prompts, "equal"):
        return _of_one_length
    return lambda parts: [[number] for number in range(len(parts))]


def _is_independent(model: Any, prompts: Sequence[Sequence[int]], beside: Literal["longer", "equal"]) -> bool:
    """Whether a prompt beside another one, a longer one or one of equal length, has the answer that it has alone.

    A short trial finds out, once a model.
    """
    known = _INDEPENDENT.setdefault(model, {})
    if beside not in known:
        shortest, longest = min(prompts, key=len), max(prompts, key=len)
        count = (len(longest) - len(shortest)) | 1  # odd, so that no group of two or four tokens is all padding
        longer = list(islice(cycle(longest), count + len(shortest)))
        alone = _first_logits(model, [shortest])
        together = _first_logits(model, [shortest, longer if beside == "longer" else shortest[::-1]])
        limit = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
        known[beside] = bool((together - alone).abs().max() <= limit * alone.std())
    return known[beside]


def _of_one_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        groups[len(prompt)].append(number)
    return list(groups.values())


def _first_logits(model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits of the first steps after the first of some prompts, generated together, fp32."""
    device, width = next(model.parameters()).device, max(map(len, prompts))
    pad = prompts[0][0]
    with _plain_generation(model), _without_hooks(model):
        output = model.generate(
            input_ids=torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.stack([step[0] for step in output.logits]).float()


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Remove hooks from the model while the body runs, so that a trial is none of their calls."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        yield  # FSDP2 gathers weights in hooks
        return
    names = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(part, name, vars(part)[name]) for part in model.modules() for name in names]
    for part, name, hooks in kept:
        vars(part)[name] = type(hooks)()
    try:
        yield
    finally:
        for part, name, hooks in kept:
            vars(part)[name] = hooks


def _prefix_model(model: nn.Module, longest: int, head: Sequence[int] = ()) -> PrefixModel | None:
    """The model, where it can go on from keys and values in a batch of prompts of several lengths."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    found = prefix_model(model, longest, head) or hooked_model(model, longest)
    return found if found is not None and found.takes_positions else None


def _chosen(choose: Choose, rows: Sequence[int], logits: Tensor, live: Sequence[int], step: int) -> Tensor:
    """What is chosen for some rows of a batch, whose numbers among all are given."""
    return choose(logits, [rows[i] for i in live], step)


class _Chosen:
    """A logits processor that leaves one token, the chosen one, so that ``generate`` is greedy with it."""

    def __init__(self, choose: Choose) -> None:
        self.choose, self.width = choose, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.width = self.width or input_ids.shape[1]
        tokens = self.choose(scores, range(len(scores)), input_ids.shape[1] - self.width)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


def _texts(tokens: Sequence[list[int]], ends: Sequence[int], prompt_format: PromptFormat) -> list[str]:
    """Texts of generated tokens, up to where an answer ends."""
    answers = [_until(row, ends) for row in tokens]
    texts = prompt_format.tokenizer.batch_decode(answers, skip_special_tokens=True)
    if end := prompt_format.end_text:
        texts = [text.partition(end)[0] for text in texts]
    return [text.strip() for text in texts]


@contextmanager
def casts_kept(device: str) -> Iterator[None]:
    """Cast each weight once and not for every token: Lightning's mixed precision keeps no casts."""
    if not torch.is_autocast_enabled(device):
        yield
        return
    with torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=True):
        yield


def answer_ends(model: Any, prompt_format: PromptFormat) -> list[int]:
    """Tokens that end an answer, and those at which the model's own generation stops."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = own if isinstance(own, (list, tuple)) else [own]
    return list(dict.fromkeys([*prompt_format.ends, *(token for token in own if token is not None)]))


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


@contextmanager
def _plain_generation(model: nn.Module) -> Iterator[None]:
    """Remove the model's generation config while the body runs: ``generate`` takes unset options from it."""
    from transformers import GenerationConfig

    owners: list[Any] = [
        part for part in model.modules() if isinstance(vars(part).get("generation_config"), GenerationConfig)
    ]
    kept = [part.generation_config for part in owners]
    for part, own in zip(owners, kept, strict=True):
        part.generation_config = GenerationConfig(bos_token_id=own.bos_token_id, use_cache=own.use_cache)
    try:
        yield
    finally:
        for part, own in zip(owners, kept, strict=True):
            part.generation_config = own
