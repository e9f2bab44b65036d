"""Quality of generated answers: repetition, distinct n-grams, refusals, empty answers, length, gibberish."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, regex
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.language.metrics.text_classifier import TextClassifier

__all__ = ["REFUSALS", "OutputQuality", "QualityResult", "distinct", "refusal", "repetition"]

REFUSALS = (
    r"\bI (?:\w+ly |just )?(?:do not|don't|did not|didn't|cannot|can't|can not|could not|couldn't|will not|won't|"
    r"have not|haven't|lack)\b",
    r"\bI(?:'ve| have| seem to have| hold) (?:\w+ly )?(?:no\b|not\b|yet to\b|come up short)",
    r"\bI(?:'m| am) (?:\w+ )?(?:not|unable|unaware|unsure|uncertain|unfamiliar|uninformed|sorry|afraid|at a loss|"
    r"at a disadvantage|drawing a blank|blank|clueless|stumped|lacking|missing|in the dark|limited)\b",
    r"\bI must (?:decline|confess|admit)\b",
    r"^\s*(?:sorry|unfortunately|apologies|regrettably)\b",
    r"\bas an AI\b",
    r"\bmy (?:\w+ )?(?:resources|databases?|training|understanding|knowledge|capabilities|programming|data|expertise)\b"
    r".{0,20}(?:n't\b|\bnot\b|\bis limited\b|\blacks?\b)",
    r"\b(?:beyond|outside|out of|not within|isn't within) (?:my|the scope of my)\b",
    r"\bthat.{0,40}\b(?:mystery to me|(?:in|for) my (?:\w+ )?(?:knowledge|training|data|dataset|field)|"
    r"I need to look up|not something I|I've been programmed)\b",
    r"\bI'?(?:ve| have)? (?:\w+ )?(?:no|not) (?:idea|clue)\b",
)
"""Regular expressions, in any case, of which one occurs in an answer that refuses."""


class QualityResult(NamedTuple):
    """Quality of the answers of a set.

    Args:
        repetition: Mean over answers of one minus the share of different 4-grams of words; near 0 is fluent.
        distinct_1: Different words by words, over all answers together; a collapsed model is near 0.
        distinct_2: The same of pairs of words.
        refusal_rate: Share of answers that refuse.
        empty_rate: Share of answers without a word.
        mean_length: Mean number of words.
        gibberish: Mean probability that an answer is not clean, where a classifier is given; else ``None``.
        n: Number of answers.
    """

    repetition: float
    distinct_1: float
    distinct_2: float
    refusal_rate: float
    empty_rate: float
    mean_length: float
    gibberish: float | None
    n: int


def repetition(texts: Sequence[str], n: int = 4) -> Tensor:
    r"""Repetition within each text, $1 - \frac{|\text{different } n\text{-grams}|}{|n\text{-grams}|}$ of words.

    Args:
        texts: Generated texts.
        n: Words of an n-gram.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1); 0 for a text of less than ``n`` words.

    Example:
        >>> repetition(["a b c d a b c d", "one two"])
        tensor([0.2000, 0.0000], dtype=torch.float64)

    References:
        Welleck et al., *Neural Text Generation With Unlikelihood Training*, arXiv:1908.04319.
    """
    at_least("n", n, 1)
    grams = [_grams(text, n) for text in texts]
    return torch.tensor([1 - len(set(row)) / len(row) if row else 0.0 for row in grams], dtype=torch.float64)


def distinct(texts: Sequence[str], n: int = 2) -> float:
    r"""Distinct-n of a set of texts, $\frac{|\text{different } n\text{-grams}|}{|n\text{-grams}|}$ over all together.

    Args:
        texts: Generated texts.
        n: Words of an n-gram.

    Returns:
        In [0, 1]; 0 where there is no n-gram.

    Example:
        >>> distinct(["I do not know", "I do not know"], n=1)
        0.5

    References:
        Li et al., *A Diversity-Promoting Objective Function for Neural Conversation Models*, arXiv:1510.03055.
    """
    at_least("n", n, 1)
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def refusal(texts: Sequence[str], patterns: Sequence[str] = REFUSALS) -> Tensor:
    """Whether each text refuses to answer, by regular expressions.

    Args:
        texts: Generated texts.
        patterns: Regular expressions, in any case.

    Returns:
        Shape ``(N,)``, fp64, 0 or 1.

    Raises:
        ValueError: If a pattern is no regular expression.

    Example:
        >>> refusal(["Sorry, I don't know that.", "It is Paris."])
        tensor([1., 0.], dtype=torch.float64)
    """
    found = re.compile("|".join(f"(?:{regex('patterns', p)})" for p in patterns), re.IGNORECASE)
    plain = [text.replace("’", "'") for text in texts]
    return torch.tensor([float(bool(patterns and found.search(text))) for text in plain], dtype=torch.float64)


class OutputQuality(IndexedMetric):
    """Repetition, distinct words, refusals, empty answers, length and gibberish over all answers of a set.

    Good is what the original or the retrained model has.

    Args:
        clean: A judge of the clean class, whose complement is gibberish; such as
            ``TextClassifier("madhurjindal/autonlp-Gibberish-Detector-492513457", "clean", max_length=32)``. Without
            one, gibberish is not measured.
        refusals: Regular expressions of refusals.

    Raises:
        ValueError: If a pattern is no regular expression, or no row was seen.

    Example:
        >>> metric = OutputQuality()
        >>> metric.update(["Sorry, I don't know that.", ""], index=[0, 1])
        >>> metric.compute().refusal_rate, metric.compute().empty_rate
        (0.5, 0.5)
    """

    higher_is_better: bool | None = None

    def __init__(self, clean: TextClassifier | None = None, refusals: Sequence[str] = REFUSALS, **kwargs: Any) -> None:
        names = ("repetition", "refusal", "length", "pairs", *(("gibberish",) if clean is not None else ()))
        super().__init__(names, **kwargs)
        self.clean, self.refusals = clean, tuple(regex("refusals", pattern) for pattern in refusals)
        for n in (1, 2):
            self.add_rows(f"grams_{n}")

    def update(self, texts: Sequence[str], index: Tensor | Sequence[int] | None = None) -> None:
        """Count generated answers, with the numbers of their rows."""
        words, pairs = ([len(_grams(text, n)) for text in texts] for n in (1, 2))
        numbers = {
            "repetition": repetition(texts),
            "refusal": refusal(texts, self.refusals),
            "length": torch.tensor(words, dtype=torch.float64),
            "pairs": torch.tensor(pairs, dtype=torch.float64),
        }
        if self.clean is not None:
            numbers["gibberish"] = 1 - self.clean(texts)
        self.record(index, "rows", **numbers)
        for n in (1, 2):
            different = {_number(gram) for text in texts for gram in _grams(text, n)}
            self.append(f"grams_{n}", torch.tensor(sorted(different), dtype=torch.float64))

    def compute(self) -> QualityResult:
        """The numbers over all answers so far."""
        self.kept("length")
        rows = self.unique_rows()
        different = [len(self.values(f"grams_{n}").unique()) for n in (1, 2)]
        return QualityResult(
            repetition=float(rows["repetition"].mean()),
            distinct_1=different[0] / max(1.0, float(rows["length"].sum())),
            distinct_2=different[1] / max(1.0, float(rows["pairs"].sum())),
            refusal_rate=float(rows["refusal"].mean()),
            empty_rate=float((rows["length"] == 0).double().mean()),
            mean_length=float(rows["length"].mean()),
            gibberish=float(rows["gibberish"].mean()) if self.clean is not None else None,
            n=len(rows["index"]),
        )


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _number(gram: tuple[str, ...]) -> int:
    """A number of 52 bits for an n-gram, which fp64 holds."""
    digest = hashlib.blake2b("\0".join(gram).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 12
