"""Batches of sequences of similar length, within a token budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

__all__ = ["Batch", "common_head", "like_lengths", "plan", "shared_beginning"]

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


def shared_beginning(sequences: Sequence[Sequence[int]], longest: int) -> int:
    """Length of the common beginning of all sequences, up to a limit."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in same), longest)


def common_head(sequences: Sequence[Sequence[int]], longest: int) -> int:
    """Length of the common beginning, if computing it once is worth its own forward pass; else 0.

    Args:
        sequences: Token ids.
        longest: As many tokens at most.

    Example:
        >>> common_head([[*range(90), 1], [*range(90), 2, 3], [*range(90), 1], list(range(99))], longest=88)
        88
    """
    length = shared_beginning(sequences, longest)
    return length if length > 0 and length * (len(sequences) - 1) >= _LARGE else 0


def like_lengths(
    lengths: Sequence[int], rows: Sequence[int], max_tokens: int, batch_size: int | None = None, head: int = 0
) -> list[list[int]]:
    """Split rows into batches of similar length, each with one row or at most a number of padded tokens.

    Args:
        lengths: Length of every row.
        rows: The rows to split.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in rows.
        head: Tokens before every row that are computed already; a batch holds their keys and values.

    Example:
        >>> like_lengths([3, 9, 4, 8], range(4), max_tokens=20)
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    # The longest first: what does not fit into memory fails at once.
    for row in sorted(rows, key=lambda row: -lengths[row]):
        last = batches[-1] if batches else None
        room = max_tokens - head * (len(last) + 1) if last is not None else 0
        if last is None or len(last) == batch_size or not _fits(lengths[row], lengths[last[0]], len(last), room):
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
    head: int = 0,
) -> list[Batch]:
    """Batches of all sequences.

    Args:
        lengths: Length of every sequence.
        prompts: The prompt of every sequence, where those that have the same one may share its computation.
        max_tokens: Largest batch in tokens.
        batch_size: Largest batch in sequences.
        shares: Smallest number of batches, if there are as many sequences.
        head: Tokens that all sequences begin with, which are computed before.
    """
    if shares > 1:
        max_tokens = max(1, min(max_tokens, sum(lengths) // shares))
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in range(len(lengths)):
        groups[prompts[row] if prompts is not None else (row,)].append(row)
    shared = {p for p, rows in groups.items() if prompts is not None and len(rows) > 1 and len(p) > max(2, head + 1)}
    alone = [row for prompt, rows in groups.items() if prompt not in shared for row in rows]
    rest = [length - head for length in lengths]
    batches = [Batch(rows) for rows in like_lengths(rest, alone, max_tokens, batch_size, head)]
    for bucket in _buckets(sorted(shared, key=lambda p: (-len(p), p)), max_tokens):
        # The last token of a prompt predicts the first one of each answer.
        prefix = min(map(len, bucket)) - 1
        rows = [row for prompt in bucket for row in groups[prompt]]
        answers = [length - prefix for length in lengths]
        batches.append(Batch(rows, prefix, tuple(like_lengths(answers, rows, max_tokens, batch_size))))
    return batches


def _buckets(prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[tuple[int, ...]]]:
    """Groups of prompts of similar length, the longest first, whose keys and values are held at a time."""
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
