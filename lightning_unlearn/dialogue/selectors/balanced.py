"""Selection of examples with different ratings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.selectors.ranked import RankedSelector

__all__ = ["LabelBalanced", "by_label"]


class LabelBalanced(RankedSelector):
    """The best example of each majority rating in turn, as another selector ranks them.

    Ratings are very unequal in number, such as 761 of 1000 dialogues with a 3 in USS-SGD, so that most selections show
    only one label.

    Args:
        selector: Ranks the pool.
    """

    def __init__(self, selector: RankedSelector) -> None:
        if not isinstance(selector, RankedSelector):
            raise TypeError(f"selector must rank the whole pool, as a RankedSelector does, but got {selector!r}.")
        self.selector = selector

    def prepare(self) -> None:
        self.selector.fit(self.pool)

    def ranking(self, query: Dialogue) -> list[int]:
        # The query's own is dropped before the turns are taken, so that it does not use up the turn of its label.
        groups = by_label(self.pool, self.selector.select(query, len(self.pool))).values()
        return [number for turn in zip_longest(*groups) for number in turn if number is not None]


def by_label(pool: Sequence[Dialogue], order: Iterable[int]) -> dict[float, list[int]]:
    """Numbers of the dialogues of each majority rating, in an order; the rating that comes first in it is first."""
    groups: dict[float, list[int]] = {}
    for number in order:
        groups.setdefault(pool[number].majority, []).append(number)
    return groups
