"""Ratings from the log-probabilities of tokens that an endpoint sends with its text."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from lightning_unlearn.dialogue.prompt import Mode
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.functional.dialogue.rating_text import (
    NO_RANGE,
    RATING_CUE_PATTERN,
    bare_pattern,
    label_alternatives,
    on_another_scale,
)

__all__ = ["rating_from_logprobs"]

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
        The rating; ``None`` where no log-probabilities came, no label was written, it is of another scale, as
        ``4/10``, it is not one token, or a likely token may be the beginning of another label, such as ``1`` of ``10``.

    Example:
        >>> from lightning_unlearn import SATISFACTION
        >>> tokens = [("Rating", {}), (":", {}), (" 4", {" 4": math.log(0.6), " 3": math.log(0.2)})]
        >>> rating = rating_from_logprobs(SATISFACTION, "score_only", "Rating: 4", tokens)
        >>> round(rating.score, 4), rating.label, round(rating.vocab_mass, 4)
        (3.75, '4', 0.8)
    """
    words = label_alternatives(task.labels)
    found = list(re.finditer(rf"{RATING_CUE_PATTERN}({words})(?![\w.]){NO_RANGE}", text, re.IGNORECASE))
    match = (found[-1] if mode == "analysis_first" else found[0]) if found else None
    if match is None:
        match = re.match(bare_pattern(task.labels), text, re.IGNORECASE)  # a bare label, as terse judges write it
    if match is None:
        return None
    written, place = match[1], match.start(1)
    if task.numeric and on_another_scale(text[match.end(1) :], task.values[-1]):
        return None
    end = _offset(text, tokens)
    if end is None:
        return None
    for token, likeliest in tokens:
        start, end = end, end + len(token)
        if start <= place < end:
            whole = place == start + _white(token) and token.strip().lower() == written.lower()
            return _expected(task, token.strip(), likeliest, text) if whole else None
    return None


def _offset(text: str, tokens: Sequence[Token]) -> int | None:
    """Where the first token begins in the text, which may be without reasoning or white space before it.

    Where a character is split among tokens, some servers write its bytes, and tokens do not add up to the text.
    """
    whole = "".join(token for token, _ in tokens)
    place = whole.rfind(text)
    return None if place < 0 else -place


def _white(token: str) -> int:
    return len(token) - len(token.lstrip())


def _expected(task: RatingTask, token: str, likeliest: Mapping[str, float], text: str) -> Rating | None:
    shares = dict.fromkeys(task.labels, 0.0)
    names = {label.lower(): label for label in task.labels}
    others: set[str] = set()
    for other, log_prob in likeliest.items():
        word = other.strip()  # with and without a space before it
        label = word if word in shares else names.get(word.lower()) if len(names) == len(shares) else None
        if label is not None:
            shares[label] += math.exp(log_prob)
        others.add(word.lower())
    mass = math.fsum(shares.values())
    if (token not in shares and token.lower() not in names) or mass == 0 or _begins_another(names, others):
        return None
    probs = tuple(share / mass for share in shares.values())
    score = math.fsum(p * value for p, value in zip(probs, task.values, strict=True))
    likely = max(range(len(probs)), key=probs.__getitem__)
    return Rating(score, task.labels[likely], probs, text, True, mass)


def _begins_another(labels: Collection[str], tokens: Collection[str]) -> bool:
    """Whether a token may be the beginning of a label of several tokens, such as ``1`` of ``10``."""
    return any(
        token and label != token and label.startswith(token) and label not in tokens
        for token in tokens
        for label in labels
    )
