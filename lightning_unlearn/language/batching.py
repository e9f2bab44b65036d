"""Batches of sequences of like lengths, within a budget of tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Batch", "like_lengths", "plan"]

_LARGE, _LEAST_FILLED = 256, 0.75  # tokens; a forward pass of fewer is hardly cheaper
_SLACK = 16  # prefixes within a batch differ in length by at most a sixteenth


class Batch(NamedTuple):
    """Sequences that run together.

    Args:
        rows: Their numbers.
        prefix: Tokens that are computed once for those that begin with the same; 0 if none are.
        parts: What runs after the prefixes, one part after another.
    """

    rows: list[int]
    prefix: int = 0
    parts: tuple[list[int], ...] = ()


def like_lengths(
    lengths: Sequence[int], rows: Sequence[int], max_tokens: int, batch_size: int | None = None
) -> list[list[int]]:
    """Split rows into batches of like lengths; padded, each has at most so many tokens, or one row.

    Args:
        lengths: Length of every row.
        rows: The rows to split.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in rows.

    Example:
        >>> like_lengths([3, 9, 4, 8], range(4), max_tokens=20)
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    # The longest first: what does not fit into memory fails at once.
    for row in sorted(rows, key=lambda row: -lengths[row]):
        last = batches[-1] if batches else None
        if last is None or len(last) == batch_size or not _fits(lengths[row], lengths[last[0]], len(last), max_tokens):
            batches.append([row])
        else:
            last.append(row)
    return batches


def _fits(length: int, width: int, rows: int, max_tokens: int) -> bool:
    """Whether one more row belongs to a batch: much padding costs more than another batch, once this one is large."""
    much_padding = length < _LEAST_FILLED * width and rows * width >= _LARGE
    return (rows + 1) * width <= max_tokens and not much_padding


def plan(
    lengths: Sequence[int],
    prompts: Sequence[tuple[int, ...]] | None,
    max_tokens: int,
    batch_size: int | None = None,
    shares: int = 1,
) -> list[Batch]:
    """Batches of all sequences.

    Args:
        lengths: Length of every sequence.
        prompts: The prompt of every sequence, where those that have the same one may share its computation.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in sequences.
        shares: Make at least so many batches, if there are as many sequences.
    """
    if shares > 1:
        max_tokens = max(1, min(max_tokens, sum(lengths) // shares))
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in range(len(lengths)):
        groups[prompts[row] if prompts is not None else (row,)].append(row)
    alone = [row for prompt, rows in groups.items() for row in rows if prompts is None or not _worth(prompt, rows)]
    batches = [Batch(rows) for rows in like_lengths(lengths, alone, max_tokens, batch_size)]
    shared = sorted((p for p, rows in groups.items() if prompts is not None and _worth(p, rows)), key=len, reverse=True)
    for bucket in _buckets(shared, max_tokens):
        # The last token of a prompt predicts the first one of each answer.
        prefix = min(map(len, bucket)) - 1
        rows = [row for prompt in bucket for row in groups[prompt]]
        rest = [length - prefix for length in lengths]
        batches.append(Batch(rows, prefix, tuple(like_lengths(rest, rows, max_tokens, batch_size))))
    return batches


def _worth(prompt: tuple[int, ...], rows: Sequence[int]) -> bool:
    return len(rows) > 1 and len(prompt) > 2


def _buckets(prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[tuple[int, ...]]]:
    """Prompts of like lengths, the longest first, whose keys and values are held at a time."""
    buckets: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        last = buckets[-1] if buckets else None
        if last is not None:
            like = len(last[0]) - len(prompt) <= max(1, len(last[0]) // _SLACK)
            if like and (len(last) + 1) * len(last[0]) <= max_tokens:
                last.append(prompt)
                continue
        buckets.append([prompt])
    return buckets
