"""Groups of prompts that begin alike, such as with the same examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lightning_unlearn.language.batching import common_head

__all__ = ["Group", "groups_by_head"]

Group = tuple[list[int], int]
"""Numbers of prompts, and how many tokens they share."""


def groups_by_head(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Split prompts so that the fewest tokens are computed, where what a group shares is computed once.

    Each prompt runs at least its last token itself.

    Args:
        prompts: Token ids.

    Example:
        >>> one, two = [*range(600), 1], [*range(300), *range(900, 1200)]
        >>> groups_by_head([one, two, one, two, [7]])
        [([0, 2], 600), ([1, 3], 599), ([4], 0)]
    """
    groups, _ = _split(prompts, list(range(len(prompts))), 0)
    alone = [row for rows, head in groups if head == 0 for row in rows]
    shared = [group for group in groups if group[1]]
    return [*shared, *([(sorted(alone), 0)] if alone else [])]


def _split(prompts: Sequence[Sequence[int]], rows: list[int], begun: int) -> tuple[list[Group], int]:
    """Groups of some prompts that share their beginning, and how many tokens that saves."""
    if len(rows) < 2:
        return [(rows, 0)], 0
    chosen = [prompts[row] for row in rows]
    head = common_head(chosen, min(map(len, chosen)) - 1)
    together = [(rows, head)], head * (len(rows) - 1)
    place = begun
    while all(len(prompt) > place and prompt[place] == chosen[0][place] for prompt in chosen):
        place += 1
    branches: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        branches[prompts[row][place] if len(prompts[row]) > place else -1].append(row)
    if len(branches) == 1:  # the same prompt several times
        return together
    least = sum((len(part) - 1) * max(len(prompts[row]) for row in part) for part in branches.values())
    if least <= together[1]:
        return together
    parts = [_split(prompts, part, place) for part in branches.values()]
    saved = sum(part[1] for part in parts)
    return ([group for part in parts for group in part[0]], saved) if saved > together[1] else together
