"""Parser of ratings in a judge's text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

__all__ = ["RATING_PATTERN", "Which", "parse_label", "parse_rating"]

Which = Literal["first", "last"]

RATING_PATTERN = r"\brating[\s*_]*[:=]?[\s*_\[]*(\d+(?:\.\d+)?)"
"""A number after the word rating, also in Markdown."""


def parse_rating(
    text: str, low: float, high: float, which: Which = "last", pattern: str = RATING_PATTERN
) -> float | None:
    """The number after the word "rating", in upper or lower case.

    Args:
        text: Text written by the judge.
        low: Lowest rating.
        high: Highest rating.
        which: Match that counts: the last one if an analysis precedes the rating, the first one if it follows.
        pattern: Regular expression whose first group is the number.

    Returns:
        The rating; ``None`` if there is none, or one outside ``[low, high]``.

    Example:
        >>> texts = ["Rating: 4", "rating = 3.5", "Analysis: 2 issues. Rating: 5", "Rating: 7", ""]
        >>> [parse_rating(text, 1, 5) for text in texts]
        [4.0, 3.5, 5.0, None, None]
    """
    found = re.findall(pattern, text, re.IGNORECASE)
    if not found:
        return None
    match = found[0 if which == "first" else -1]
    value = float(match[0] if isinstance(match, tuple) else match)
    return value if low <= value <= high else None


def parse_label(text: str, labels: Sequence[str], which: Which = "last") -> int | None:
    """Index of the label after the word "rating", for labels that are words.

    Args:
        text: Text written by the judge.
        labels: The labels.
        which: Match that counts.

    Returns:
        The index of the label; ``None`` if there is none.

    Example:
        >>> parse_label("Rating: very good. Rating: good", ["bad", "good", "very good"], "first")
        2
    """
    longest_first = sorted(labels, key=len, reverse=True)
    words = "|".join(map(re.escape, longest_first))
    found = re.findall(rf"\brating[\s*_]*[:=]?[\s*_\[\"']*({words})(?!\w)", text, re.IGNORECASE)
    if not found:
        return None
    match = found[0 if which == "first" else -1]
    exact = [number for number, label in enumerate(labels) if label == match]
    return (exact or [number for number, label in enumerate(labels) if label.lower() == match.lower()])[0]
