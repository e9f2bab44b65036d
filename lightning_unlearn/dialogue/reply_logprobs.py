"""Ratings from the log-probabilities of tokens that an endpoint sends with its text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from lightning_unlearn.dialogue.prompt import Mode
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.task import RatingTask

__all__ = ["rating_from_logprobs"]

_CUE = r"\brating[\s*_]*[:=]?[\s*_\[\"']*"

Token = tuple[str, Mapping[str, float]]
"""A token of the text, and the log-probabilities of the likeliest tokens at its place."""


def rating_from_logprobs(task: RatingTask, mode: Mode, text: str, tokens: Sequence[Token]) -> Rating | None:
    """The expected score at the place where a judge has written its label.

    Endpoints tell the likeliest tokens of a place alone; a label that is not among them counts with probability 0, and
    ``vocab_mass`` is what the others have together.

    Args:
        task: The scale.
        mode: With the analysis first the last rating in the text counts, otherwise the first one.
        text: What the judge has written.
        tokens: The tokens of the text.

    Returns:
        The rating; ``None`` where no log-probabilities came, no label was written, or it is not one token.

    Example:
        >>> from lightning_unlearn import SATISFACTION
        >>> tokens = [("Rating", {}), (":", {}), (" 4", {" 4": math.log(0.6), " 3": math.log(0.2)})]
        >>> rating = rating_from_logprobs(SATISFACTION, "score_only", "Rating: 4", tokens)
        >>> round(rating.score, 4), rating.label, round(rating.vocab_mass, 4)
        (3.75, '4', 0.8)
    """
    words = "|".join(map(re.escape, sorted(task.labels, key=len, reverse=True)))
    found = list(re.finditer(rf"{_CUE}({words})(?![\w.])", text, re.IGNORECASE))
    if not found:  # a bare label, as terse judges write it
        found = list(re.finditer(rf"^\s*({words})(?![\w.])", text, re.IGNORECASE))
    if not found:
        return None
    place = (found[-1] if mode == "analysis_first" else found[0]).start(1)
    end = 0
    for token, likeliest in tokens:
        start, end = end, end + len(token)
        if start <= place < end:
            return _expected(task, token, likeliest, text) if place == start + _white(token) else None
    return None


def _white(token: str) -> int:
    return len(token) - len(token.lstrip())


def _expected(task: RatingTask, token: str, likeliest: Mapping[str, float], text: str) -> Rating | None:
    shares = dict.fromkeys(task.labels, 0.0)
    for other, log_prob in likeliest.items():
        if other.strip() in shares:  # with and without a space before it
            shares[other.strip()] += math.exp(log_prob)
    mass = math.fsum(shares.values())
    if token.strip() not in shares or mass == 0:
        return None
    probs = tuple(share / mass for share in shares.values())
    score = math.fsum(p * value for p, value in zip(probs, task.values, strict=True))
    likely = max(range(len(probs)), key=probs.__getitem__)
    return Rating(score, task.labels[likely], probs, text, True, mass)
