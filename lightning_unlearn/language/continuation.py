"""Generation for many prompts, without recomputing common beginnings or finished rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_unlearn.core.scores import head_only_at
from lightning_unlearn.language.prefixes import PrefixModel, keeps_all

__all__ = ["Change", "Choose", "continuations", "likeliest"]

Choose: TypeAlias = Callable[[Tensor, Sequence[int], int], Tensor]
"""``(logits (n, V), rows, step) -> tokens (n,)``: the next token of some of the rows, at a step counted from 0."""

Change: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Gives a context in which a model is another one, as by noise on its hidden states."""


def likeliest(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """The most likely token of each row."""
    return logits.argmax(-1)


def continuations(
    model: PrefixModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    choose: Choose = likeliest,
    copies: int = 1,
    changes: Sequence[Change] = (),
) -> list[list[int]] | None:
    """The tokens after each prompt, one after another, the token that ends it among them.

    The common head of all prompts is not computed again, a prompt is computed once for all its copies, and finished
    rows are dropped.

    Args:
        model: The model, in evaluation mode, which takes ``position_ids``.
        prompts: Token ids, at least one prompt of at least one token each; where the model has a head, each begins with
            it and goes on.
        max_new_tokens: Longest continuation in tokens.
        ends: Tokens at which a continuation ends.
        choose: Chooses the next tokens.
        copies: Continuations of each prompt, which are rows in a row.
        changes: Changes of the model, one for each copy, under which the prompts alone are computed. The model then has
            no head.

    Returns:
        The tokens of each row; ``None`` where the model does not keep the keys and values of all tokens.
    """
    from lightning_unlearn.language.roomy_cache import keep_rows, with_room

    device = next(model.model.parameters()).device
    begun: list[_Begun] = []
    each: Sequence[Change] = changes or [nullcontext]
    for change in each:
        with change():
            begun.append(_begun(model, prompts, device))
        if not keeps_all(begun[-1][1], begun[-1][2].shape[1] + max_new_tokens):
            return None
    logits, cache, mask = _side_by_side(begun) if changes else _copied(begun[0], copies)
    cache, lengths = with_room(cache, max_new_tokens), mask.sum(1)
    written: list[list[int]] = [[] for _ in range(len(mask))]
    live = list(range(len(mask)))
    for step in range(max_new_tokens):
        tokens = choose(logits, live, step).tolist()
        for row, token in zip(live, tokens, strict=True):
            written[row].append(token)
        going = [i for i, token in enumerate(tokens) if token not in ends]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(live):
            going = keep_rows(cache, going)
            chosen = torch.tensor(going, device=device)
            mask, lengths = mask[chosen], lengths[chosen]
            live = [live[i] for i in going]
        ids = torch.tensor([[tokens[i]] for i in going], device=device)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits, cache = _step(model, ids, mask, lengths[:, None], cache, torch.zeros_like(lengths))
        lengths = lengths + 1
    return written


_Begun: TypeAlias = tuple[Tensor, Any, Tensor]
"""Logits ``(B, V)`` at the last token of each prompt, their cache, and their mask, 0 where it is padded."""


def _copied(begun: _Begun, copies: int) -> _Begun:
    """Each prompt so many times, its copies in a row."""
    logits, cache, mask = begun
    if copies > 1:
        owners = torch.arange(len(mask), device=mask.device).repeat_interleave(copies)
        cache.batch_select_indices(owners)
        logits, mask = logits[owners], mask[owners]
    return logits, cache, mask


def _side_by_side(begun: Sequence[_Begun]) -> _Begun:
    """The same prompts begun in several ways, those of a prompt in a row."""
    logits, caches, masks = zip(*begun, strict=True)
    cache = caches[0]
    for layers in zip(*(one.layers for one in caches), strict=True):
        if layers[0].get_seq_length() == 0:
            continue  # it takes the keys and values of another layer
        for name in ("keys", "values"):
            setattr(layers[0], name, torch.stack([getattr(layer, name) for layer in layers], 1).flatten(0, 1))
    return torch.stack(logits, 1).flatten(0, 1), cache, torch.stack(masks, 1).flatten(0, 1)


def _begun(model: PrefixModel, prompts: Sequence[Sequence[int]], device: torch.device) -> _Begun:
    head = model.head.length if model.head is not None else 0
    cache = model.head.select([0] * len(prompts)) if model.head is not None else None
    rest = [list(prompt[head:]) for prompt in prompts]
    width = max(map(len, rest))
    ids = torch.tensor([part + [0] * (width - len(part)) for part in rest], device=device)
    mask = torch.tensor([[1] * (head + len(part)) + [0] * (width - len(part)) for part in rest], device=device)
    last = mask.sum(1) - 1
    # A padded place has the last position: there may be no later one in a table of positions.
    positions = (head + torch.arange(width, device=device)).expand(len(rest), -1).minimum(last[:, None])
    return *_step(model, ids, mask, positions, cache, last - head), mask


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
    return logits if logits.dim() == 2 else logits[rows, last], getattr(output, model.name, None)
