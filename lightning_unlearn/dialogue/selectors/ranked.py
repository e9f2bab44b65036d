"""Base class of the selectors that rank a pool."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice

import torch

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.dialogue.data.splitting import conversation_of
from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["RankedSelector", "query_generator"]


class RankedSelector(ABC):
    """Chooses the first dialogues of a ranking of the pool, which a subclass makes for each query.

    Neither a dialogue with the query's own ``id`` is chosen, nor another turn or response of its conversation.
    """

    pool: list[Dialogue]

    def fit(self, pool: Sequence[Dialogue]) -> None:
        """Prepare for a pool, which is the training split only.

        Args:
            pool: Rated dialogues.

        Raises:
            ValueError: If there are none, or one has no ratings.
        """
        if not pool:
            raise ValueError("The pool has no dialogues to take examples from. Give some, or use shots=0.")
        for dialogue in pool:
            if not dialogue.ratings:
                raise ValueError(
                    f"Dialogue {dialogue.id!r} of the pool has no ratings, so it cannot be an example. Leave it out."
                )
        self.pool = list(pool)
        self.prepare()

    def prepare(self) -> None:  # noqa: B027  # most have nothing to compute
        """What is computed of the pool once; nothing by default."""

    @abstractmethod
    def ranking(self, query: Dialogue) -> Iterable[int]:
        """Numbers of all dialogues of the pool, the best first.

        Args:
            query: The dialogue that is to be rated.
        """

    def select(self, query: Dialogue, k: int) -> list[int]:
        """Numbers of the chosen dialogues in the pool, the best first.

        Args:
            query: The dialogue that is to be rated.
            k: How many; all that may be chosen where there are fewer.

        Raises:
            RuntimeError: If there is no pool yet.
            ValueError: If ``k`` is negative.
        """
        at_least("k", k, 0)
        if not hasattr(self, "pool"):
            raise RuntimeError(f"{type(self).__name__} has no pool yet. Call fit(pool) first.")
        if k == 0:
            return []
        return list(islice((number for number in self.ranking(query) if self.may_show(query, number)), k))

    def may_show(self, query: Dialogue, number: int) -> bool:
        """Whether a dialogue of the pool is neither the query nor of its conversation."""
        other = self.pool[number]
        return other.id != query.id and conversation_of(other) != conversation_of(query)


def query_generator(seed: int, query: Dialogue) -> torch.Generator:
    """A generator that depends on a seed and the query's ``id``, and not on what was rated before."""
    digest = hashlib.sha256(f"{seed}:{query.id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
