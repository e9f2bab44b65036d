"""Random selection of examples."""

from __future__ import annotations

import torch

from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.selectors.balanced import by_label
from lightning_unlearn.dialogue.selectors.ranked import RankedSelector, query_generator

__all__ = ["RandomSelector", "StratifiedSelector"]


class RandomSelector(RankedSelector):
    """Examples at random, the same for a dialogue each time and in each batch.

    Args:
        seed: Seed of the choice, with the ``id`` of the query.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(str(i), (Turn("user", "Hi"),), (3,)) for i in range(9)]
        >>> selector = RandomSelector()
        >>> selector.fit(rows)
        >>> selector.select(rows[0], 4) == selector.select(rows[0], 4), 0 in selector.select(rows[0], 9)
        (True, False)
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def ranking(self, query: Dialogue) -> list[int]:
        return torch.randperm(len(self.pool), generator=query_generator(self.seed, query)).tolist()


class StratifiedSelector(RandomSelector):
    """One random example of each majority rating, in random order, and then random ones.

    Args:
        seed: Seed of the choice, with the ``id`` of the query.
    """

    def ranking(self, query: Dialogue) -> list[int]:
        order = super().ranking(query)
        firsts = [numbers[0] for numbers in by_label(self.pool, order).values()]
        return firsts + [number for number in order if number not in firsts]
