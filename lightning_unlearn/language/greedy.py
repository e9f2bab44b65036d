"""Greedy continuation of many prompts, without what they share and without rows that have ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.scores import head_only_at
from lightning_unlearn.language.prefixes import PrefixModel

__all__ = ["greedy"]


def greedy(
    model: PrefixModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: Collection[int]
) -> list[list[int]]:
    """The most likely next tokens of each prompt, one after another, the token that ends it among them.

    The tokens that all prompts begin with, such as a system prompt, are computed once. A row that has ended is computed
    no longer.

    Args:
        model: The model, in evaluation mode, which takes ``position_ids``.
        prompts: Token ids, at least one prompt of at least one token each.
        max_new_tokens: Longest continuation in tokens.
        ends: Tokens at which a continuation ends.
    """
    device = next(model.model.parameters()).device
    written: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    shared = _shared(prompts)
    cache: Any = None
    if shared:
        prefix = model.begin(torch.tensor([list(prompts[0][:shared])], device=device))
        cache = prefix.select([0] * len(prompts))
    rest = [list(prompt[shared:]) for prompt in prompts]
    width = max(map(len, rest))
    ids = torch.tensor([part + [0] * (width - len(part)) for part in rest], device=device)
    mask = torch.tensor([[1] * (shared + len(part)) + [0] * (width - len(part)) for part in rest], device=device)
    lengths = mask.sum(1)
    # A padded place has the last position: there may be no later one in a table of positions.
    positions = (shared + torch.arange(width, device=device)).expand(len(rest), -1).minimum(lengths[:, None] - 1)
    last = lengths - shared - 1
    while True:
        logits, cache = _step(model, ids, mask, positions, cache, last)
        tokens = logits.argmax(-1).tolist()
        for row, token in zip(live, tokens, strict=True):
            written[row].append(token)
        going = [i for i, token in enumerate(tokens) if token not in ends]
        if not going or len(written[live[0]]) >= max_new_tokens:
            return written
        if len(going) < len(live):
            chosen = torch.tensor(going, device=device)
            cache.batch_select_indices(chosen)
            mask, lengths = mask[chosen], lengths[chosen]
            live = [live[i] for i in going]
        ids = torch.tensor([[tokens[i]] for i in going], device=device)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions, last = lengths[:, None], torch.zeros_like(lengths)
        lengths = lengths + 1


def _step(
    model: PrefixModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, last: Tensor
) -> tuple[Tensor, Any]:
    """Logits ``(B, V)`` at one place of each row, and the cache."""
    rows = torch.arange(len(ids), device=ids.device)
    with head_only_at(model.model, rows, last):
        output = model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **{model.name: cache}
        )
    logits = output.logits
    return logits if logits.dim() == 2 else logits[rows, last], getattr(output, model.name)


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; the last one of each is computed for itself."""
    if len(prompts) == 1:
        return 0
    same = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1)
