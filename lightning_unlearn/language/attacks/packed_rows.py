"""Batches of rows packed into one sequence, with their common beginning once and no padding."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.likelihood import IGNORE_INDEX, token_nll
from lightning_unlearn.language.batching import shared_beginning
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.token_rows import TokenRows, collate_tokens
from lightning_unlearn.language.prefixes import keeps_all, prefix_name
from lightning_unlearn.language.scored_rows import ScoredRow
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["can_pack", "packed", "padded"]

_SHARE = 0.8  # of the tokens of a padded batch; a packed one of more is not worth its mask
_LONGEST = 1024  # tokens, whose mask has as many squared


def padded(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """A batch of rows, padded on the right."""
    found = TokenRows(rows)
    return collate_tokens([found[i] for i in range(len(rows))])


def packed(rows: Sequence[TokenRow]) -> dict[str, Tensor] | None:
    """A batch of rows as one sequence.

    The rows follow their common beginning one after another. The mask lets each row see that beginning and itself, and
    its positions are those of a single row, so its logits are too.

    Args:
        rows: Tokens of the rows.

    Returns:
        ``input_ids``, ``position_ids``, ``labels`` of shape ``(1, T)`` and ``attention_mask`` ``(1, 1, T, T)``, which
        is true where a token (third axis) sees another one. ``None`` where little is saved.

    Example:
        >>> batch = packed([TokenRow([5, 6, 7, 8], [1]), TokenRow([5, 6, 7, 9], [2])])
        >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
        ([[5, 6, 7, 8, 1, 9, 2]], [[0, 1, 2, 3, 4, 3, 4]])
    """
    sequences = [[*row.prompt, *row.answer] for row in rows]
    labelled = [ScoredRow(row, 0).labelled() for row in rows]
    # The last token before a label predicts it, so each row has at least that one itself.
    first = min((places[0] for places in labelled if places), default=0)
    head = shared_beginning(sequences, max(0, first - 1))
    rests = [sequence[head:] for sequence in sequences]
    size = head + sum(map(len, rests))
    if size > min(_LONGEST, _SHARE * len(rows) * max(map(len, sequences))):
        return None
    ids = torch.tensor([*sequences[0][:head], *(token for rest in rests for token in rest)])
    labels = torch.full_like(ids, IGNORE_INDEX)
    starts = list(accumulate(map(len, rests), initial=0))
    for start, places in zip(starts, labelled, strict=False):
        chosen = torch.tensor(places, dtype=torch.long) + start
        labels[chosen] = ids[chosen]
    positions = torch.cat([torch.arange(head), *(head + torch.arange(len(rest)) for rest in rests)])
    owners = torch.repeat_interleave(torch.arange(len(rows) + 1), torch.tensor([head, *map(len, rests)]))
    sees = ((owners[:, None] == owners) | (owners == 0)).tril()
    return {
        "input_ids": ids[None],
        "attention_mask": sees[None, None],
        "position_ids": positions[None],
        "labels": labels[None],
    }


def can_pack(module: LitCausalLM, rows: Sequence[TokenRow]) -> bool:
    """Whether packed rows have the same likelihoods as single ones; tried with the two shortest rows.

    Attention must accept a pairwise mask in all layers, without a window, and the model must accept positions.

    Args:
        module: The model, with fp32 weights.
        rows: The rows to pack.
    """
    from transformers import DynamicCache

    model = module.model
    two = sorted(rows, key=lambda row: len(row.prompt) + len(row.answer))[:2]
    batch = packed(two)
    known = prefix_name(model) is not None and getattr(model.config, "_attn_implementation", None) == "sdpa"
    plain = type(module).forward is LitCausalLM.forward and module._positions is None
    if batch is None or not known or not plain or "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    if not keeps_all(DynamicCache(config=model.config), longest):
        return False
    with evaluating(module), torch.autocast(module.device.type, enabled=False):
        alone = _token_losses(module, padded(two))
        try:
            together = _token_losses(module, batch)
        except (RuntimeError, TypeError, ValueError):
            return False  # it takes no mask of pairs
    return alone.shape == together.shape and torch.allclose(alone, together, rtol=1e-3, atol=1e-3)


def _token_losses(module: LitCausalLM, batch: dict[str, Tensor]) -> Tensor:
    predictions = causal_lm_nll.predictions(module, transferred(module, batch))
    return token_nll(predictions.logits, predictions.labels)
