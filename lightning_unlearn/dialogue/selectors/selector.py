"""Interface of the selectors of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["Selector"]


@runtime_checkable
class Selector(Protocol):
    """Chooses examples for a dialogue out of a pool of rated ones."""

    def fit(self, pool: Sequence[Dialogue]) -> None:
        """Prepare for a pool, which is the training split only.

        Args:
            pool: Rated dialogues.
        """

    def select(self, query: Dialogue, k: int) -> list[int]:
        """Numbers of the chosen dialogues in the pool, the best first; never one with the query's own ``id``.

        Args:
            query: The dialogue that is to be rated.
            k: How many; all of the pool where it has fewer.
        """
