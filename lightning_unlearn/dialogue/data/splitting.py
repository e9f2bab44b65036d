"""Splits of dialogues that depend on a seed and their names, and not on their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["DialogueSplit", "conversation_of", "k_folds", "split_dialogues"]


class DialogueSplit(NamedTuple):
    """Dialogues to take examples from or train on, to choose with, and to test on."""

    pool: list[Dialogue]
    val: list[Dialogue]
    test: list[Dialogue]


def conversation_of(dialogue: Dialogue) -> str:
    """The conversation that a rated dialogue, turn or response is of: ``meta["dialogue"]``, or its own ``id``."""
    return dialogue.meta.get("dialogue", dialogue.id)


def split_dialogues(dialogues: Sequence[Dialogue], seed: int = 0, val: float = 0.1, test: float = 0.1) -> DialogueSplit:
    """Split dialogues at random; whatever is of one conversation stays together.

    Args:
        dialogues: Rated dialogues.
        seed: Seed of the split.
        val: Share of the conversations for validation; at least one of three.
        test: Share of the conversations for the test; at least one of three.

    Raises:
        ValueError: If the shares leave nothing to take examples from.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(str(i), (Turn("user", "Hi"),), (3,)) for i in range(20)]
        >>> [len(part) for part in split_dialogues(rows)]
        [16, 2, 2]
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise ValueError(f"val and test must be shares that leave some of the dialogues, but got {val} and {test}.")
    order = _shuffled(dialogues, seed)
    least = len(order) >= 3
    n_test, n_val = (max(round(share * len(order)), least and share > 0) for share in (test, val))
    side = {name: "test" if i < n_test else "val" if i < n_test + n_val else "pool" for i, name in enumerate(order)}
    parts: dict[str, list[Dialogue]] = {"pool": [], "val": [], "test": []}
    for dialogue in dialogues:
        parts[side[conversation_of(dialogue)]].append(dialogue)
    return DialogueSplit(**parts)


def k_folds(dialogues: Sequence[Dialogue], k: int = 10, seed: int = 0) -> list[list[int]]:
    """Numbers of the dialogues in each of ``k`` test folds, which have all of them once.

    Whatever is of one conversation stays in one fold. Ratings of all folds are pooled, as USS's authors do.

    Args:
        dialogues: Rated dialogues.
        k: Number of folds, at least 2.
        seed: Seed of the folds.

    Raises:
        ValueError: If there are fewer conversations than folds.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(str(i), (Turn("user", "Hi"),), (3,)) for i in range(6)]
        >>> [len(fold) for fold in k_folds(rows, 3)]
        [2, 2, 2]
    """
    order = _shuffled(dialogues, seed)
    if len(order) < at_least("k", k, 2):
        raise ValueError(f"There are {len(order)} conversations for {k} folds. Use fewer folds.")
    fold_of = {name: place % k for place, name in enumerate(order)}
    folds: list[list[int]] = [[] for _ in range(k)]
    for number, dialogue in enumerate(dialogues):
        folds[fold_of[conversation_of(dialogue)]].append(number)
    return folds


def _shuffled(dialogues: Sequence[Dialogue], seed: int) -> list[str]:
    """The conversations in the order of a keyed hash, which no other dialogue changes."""
    names = {conversation_of(dialogue) for dialogue in dialogues}
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
