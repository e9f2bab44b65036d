"""Parser of ratings in a judge's text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

__all__ = [
    "NO_RANGE",
    "RATING_CUE_PATTERN",
    "RATING_PATTERN",
    "Which",
    "bare_pattern",
    "label_alternatives",
    "on_another_scale",
    "parse_bare",
    "parse_label",
    "parse_rating",
]

Which = Literal["first", "last"]

RATING_CUE_PATTERN = r"\brating[\s*_\"']*(?:[:=\uff1a][\s*_\[(<\"']*)?"
"""The word rating up to its label, also in Markdown; brackets count after a colon only, as ``(1-5)`` is a scale."""

NO_RANGE = r"(?!,\d|[^\S\n]*(?:%|(?:[-\u2013~]|to\b|or\b)[^\S\n]*\d))"
"""What does not follow a rating on its line: ``4-5``, ``4 or 5``, ``4,5`` and ``4%`` are none."""

RATING_PATTERN = rf"{RATING_CUE_PATTERN}([-+]?\d+(?:\.\d+)?)(?!\d|\.\d){NO_RANGE}"
"""A number after the word rating."""


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
        The rating; ``None`` if there is none, a range, one outside ``[low, high]`` or of another scale, as ``4/10`` or
        ``4 out of 10``, or if the group is not a number.

    Example:
        >>> texts = ["Rating: 4", "rating = 3.5", "Analysis: 2 issues. Rating: 5", "Rating: 7", ""]
        >>> [parse_rating(text, 1, 5) for text in texts]
        [4.0, 3.5, 5.0, None, None]
    """
    found = list(re.finditer(pattern, text, re.IGNORECASE))
    if not found:
        return None
    match = found[0 if which == "first" else -1]
    group = min(1, match.re.groups)
    try:
        value = float(match[group] or "")
    except ValueError:
        return None
    if on_another_scale(text[match.end(group) :], high):
        return None
    return value if low <= value <= high else None


def on_another_scale(rest: str, high: float) -> bool:
    """Whether what follows a rating says that it is of another scale.

    Args:
        rest: The text after the rating.
        high: Highest rating.

    Example:
        >>> [on_another_scale(rest, 5) for rest in ("/5", " out of 10", "**/10", ". 10 turns")]
        [False, True, True, False]
    """
    scale = re.match(r"[\s*_\])>\"']*(?:/|out\s+of)\s*(\d+)", rest, re.IGNORECASE)
    return scale is not None and float(scale[1]) != high


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
    found = re.findall(rf"{RATING_CUE_PATTERN}({label_alternatives(labels)})(?!\w)", text, re.IGNORECASE)
    return _index(labels, found[0 if which == "first" else -1]) if found else None


def parse_bare(text: str, labels: Sequence[str]) -> int | None:
    """Index of a label that is all that the first line of a text says.

    Example:
        >>> [parse_bare(text, ["1", "2", "3"]) for text in ("2", " **3**.", "<1>", "2 issues", "2-3", "")]
        [1, 2, 0, None, None, None]
    """
    match = re.match(bare_pattern(labels), text, re.IGNORECASE)
    return _index(labels, match[1]) if match else None


def bare_pattern(labels: Sequence[str]) -> str:
    """Regular expression of a first line that is one of the labels."""
    return rf"[\s*_\[(<\"']*({label_alternatives(labels)})[*_\])>\"'.!]*[^\S\n]*(?:\n|\Z)"


def label_alternatives(labels: Sequence[str]) -> str:
    """Regular expression of the labels, the longest first."""
    return "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))


def _index(labels: Sequence[str], match: str) -> int:
    exact = [number for number, label in enumerate(labels) if label == match]
    return (exact or [number for number, label in enumerate(labels) if label.lower() == match.lower()])[0]
