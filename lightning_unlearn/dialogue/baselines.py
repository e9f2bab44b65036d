"""Baselines without a language model, which a judge should beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.dialogue.data.splitting import k_folds
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.selectors.bm25 import BM25Selector
from lightning_unlearn.dialogue.selectors.selector import Selector

__all__ = ["FitsRatings", "NeighbourRating", "TfidfRidge", "cross_rated"]


class FitsRatings(Protocol):
    """Rates dialogues after it has seen rated ones."""

    def fit(self, dialogues: Sequence[Dialogue]) -> Any:
        """Learn from rated dialogues."""

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in their order."""


class NeighbourRating:
    """The mean rating of the dialogues that a selector would show a judge.

    It reads nothing but the ratings of the examples, so a judge that is shown the same examples should do better.

    Args:
        selector: Chooses them; by default [`BM25Selector`][lightning_unlearn.BM25Selector].
        k: How many.

    Raises:
        ValueError: If ``k`` is less than 1.
    """

    def __init__(self, selector: Selector | None = None, k: int = 4) -> None:
        self.selector = BM25Selector() if selector is None else selector
        self.k = at_least("k", k, 1)

    def fit(self, dialogues: Sequence[Dialogue]) -> NeighbourRating:
        """Take dialogues as the pool.

        Args:
            dialogues: Rated dialogues.
        """
        self.pool = list(dialogues)
        self.selector.fit(self.pool)
        return self

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in their order.

        Raises:
            ValueError: If the pool has no other dialogue for one.
        """
        return [Rating(self._mean(dialogue)) for dialogue in dialogues]

    def _mean(self, dialogue: Dialogue) -> float:
        chosen = self.selector.select(dialogue, self.k)
        if not chosen:
            raise ValueError(
                f"The pool has only dialogues of the same conversation as {dialogue.id!r}. Add others to it."
            )
        return sum(self.pool[number].mean for number in chosen) / len(chosen)


class TfidfRidge:
    """Ridge regression of the mean rating on TF-IDF weights of words and pairs of words.

    Args:
        alpha: Strength of the penalty.
        longest: Longest sequence of words that is counted.

    Raises:
        ImportError: If scikit-learn is missing; raised by ``fit``.
        ValueError: If an option is out of range.
    """

    def __init__(self, alpha: float = 3.0, longest: int = 2) -> None:
        self.alpha, self.longest = above("alpha", alpha, 0), at_least("longest", longest, 1)

    def fit(self, dialogues: Sequence[Dialogue]) -> TfidfRidge:
        """Learn from rated dialogues.

        Args:
            dialogues: Rated dialogues.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import Ridge
        except ImportError:
            raise ImportError('TfidfRidge needs scikit-learn: pip install "lightning-unlearn[dialogue]"') from None
        self._words = TfidfVectorizer(ngram_range=(1, self.longest))
        weights = self._words.fit_transform([dialogue.text for dialogue in dialogues])
        self._ridge = Ridge(self.alpha).fit(weights, [dialogue.mean for dialogue in dialogues])
        return self

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in their order.

        Raises:
            RuntimeError: If it is not fitted.
        """
        if not hasattr(self, "_ridge"):
            raise RuntimeError("TfidfRidge has learned nothing yet. Call fit(dialogues) first.")
        if not dialogues:
            return []
        weights = self._words.transform([dialogue.text for dialogue in dialogues])
        return [Rating(float(score)) for score in self._ridge.predict(weights)]


def cross_rated(
    make: Callable[[], FitsRatings], dialogues: Sequence[Dialogue], k: int = 10, seed: int = 0
) -> list[Rating]:
    """Ratings of all dialogues, each by a judge that has learned from the other folds.

    A correlation over the ratings of all folds mixes their means, so it is somewhat lower than one within folds.

    Args:
        make: Makes a judge that has learned nothing.
        dialogues: Rated dialogues.
        k: Number of folds.
        seed: Seed of the folds.

    Returns:
        One rating a dialogue, in their order.

    Raises:
        ValueError: If there are fewer conversations than folds.
    """
    ratings: list[Rating | None] = [None] * len(dialogues)
    for fold in k_folds(dialogues, k, seed):
        judge, tested = make(), set(fold)
        judge.fit([dialogue for number, dialogue in enumerate(dialogues) if number not in tested])
        for number, rating in zip(fold, judge.rate([dialogues[number] for number in fold]), strict=True):
            ratings[number] = rating
    return [rating for rating in ratings if rating is not None]
