"""SQuAD metrics of open answers: exact match, word F1, and whole-word match."""

from __future__ import annotations

import re
import string
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.row_metric import IndexedMetric

__all__ = [
    "SquadExactMatch",
    "SquadF1",
    "WholeWordMatch",
    "squad_exact_match",
    "squad_f1",
    "squad_normal_form",
    "whole_word_match",
]

Answers = Sequence[str | Sequence[str]]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_QUOTES = str.maketrans({"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'})  # noqa: RUF001


def squad_normal_form(text: str, strict: bool = True) -> str:
    """The form in which SQuAD compares answers.

    In this order: lower case, the 32 characters of ``string.punctuation`` deleted, the words a, an and the replaced by
    a blank, white space collapsed.

    Args:
        text: An answer.
        strict: SQuAD's form to the letter. Otherwise, curly quotes, dashes and compatibility characters become ASCII
            first (NFKC), and hyphens blanks.

    Example:
        >>> squad_normal_form("The Prix-Goncourt, a prize!"), squad_normal_form("The Prix-Goncourt!", strict=False)
        ('prixgoncourt prize', 'prix goncourt')

    References:
        Rajpurkar et al., *SQuAD: 100,000+ Questions for Machine Comprehension of Text*, arXiv:1606.05250.
    """
    if not strict:
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
        text = "".join(" " if unicodedata.category(c) == "Pd" or c == "−" else c for c in text)
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_exact_match(predictions: Sequence[str], answers: Answers, strict: bool = True) -> Tensor:
    """Whether each prediction is one of the accepted answers, in normal form.

    Args:
        predictions: Generated answers.
        answers: Of each row the accepted answer, or several.
        strict: See `squad_normal_form`.

    Returns:
        Shape ``(N,)``, fp64, 0 or 1.

    Raises:
        ValueError: If the numbers of texts differ, or an accepted answer has no words.

    Example:
        >>> squad_exact_match(["The Paris."], ["Paris"])
        tensor([1.], dtype=torch.float64)
    """
    return _best(predictions, answers, strict, lambda text, answer: float(text == answer))


def squad_f1(predictions: Sequence[str], answers: Answers, strict: bool = True) -> Tensor:
    r"""F1 of the words of each prediction and of the best accepted answer, in normal form, as bags.

    Args:
        predictions: Generated answers.
        answers: Of each row the accepted answer, or several.
        strict: See `squad_normal_form`.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1]; 0 for a prediction without words.

    Raises:
        ValueError: If the numbers of texts differ, or an accepted answer has no words.

    Example:
        >>> squad_f1(["It is Paris"], ["Paris, France"])
        tensor([0.4000], dtype=torch.float64)
    """
    return _best(predictions, answers, strict, word_f1)


def whole_word_match(predictions: Sequence[str], answers: Answers, strict: bool = True) -> Tensor:
    """Whether the words of an accepted answer occur in each prediction, one after another, in normal form.

    "not Paris" contains Paris, so report the rate at which an entailment model disagrees
    ([`disagreement`][lightning_unlearn.language.metrics.entailment.disagreement]). Answers of more than four words are
    rarely given word for word: use ROUGE or entailment for them.

    Args:
        predictions: Generated answers.
        answers: Of each row the accepted answer, or several.
        strict: See `squad_normal_form`.

    Returns:
        Shape ``(N,)``, fp64, 0 or 1.

    Raises:
        ValueError: If the numbers of texts differ, or an accepted answer has no words.

    Example:
        >>> whole_word_match(["It is Paris.", "to concatenate"], ["Paris", "cat"])
        tensor([1., 0.], dtype=torch.float64)
    """
    return _best(predictions, answers, strict, lambda text, answer: float(f" {answer} " in f" {text} "))


def word_f1(text: str, answer: str) -> float:
    """F1 of two bags of words, of texts in normal form; 1 where both are empty, 0 where one is."""
    words, wanted = text.split(), answer.split()
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted))


class _OpenAnswers(IndexedMetric):
    """Mean over rows of a mark of generated answers.

    Args:
        strict: See `squad_normal_form`.
        **kwargs: Options of ``torchmetrics.Metric``.
    """

    higher_is_better: bool | None = None

    def __init__(self, strict: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strict = strict

    @abstractmethod
    def marks(self, predictions: Sequence[str], answers: Answers) -> Tensor:
        """The mark of each row."""

    def update(self, predictions: Sequence[str], answers: Answers, index: Tensor | Sequence[int] | None = None) -> None:
        """Count generated answers beside the accepted ones, with the numbers of their rows."""
        self.record(index, value=self.marks(predictions, answers))

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()


class SquadExactMatch(_OpenAnswers):
    """Share of predictions that are an accepted answer, in SQuAD's normal form; see `squad_exact_match`.

    Args:
        strict: SQuAD's normal form to the letter.

    Example:
        >>> metric = SquadExactMatch()
        >>> metric.update(["The Paris."], ["Paris"], index=[0])
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def marks(self, predictions: Sequence[str], answers: Answers) -> Tensor:
        """Exact match of each row."""
        return squad_exact_match(predictions, answers, self.strict)


class SquadF1(_OpenAnswers):
    """Mean F1 of the words of predictions and accepted answers, in SQuAD's normal form; see `squad_f1`.

    Args:
        strict: SQuAD's normal form to the letter.

    Example:
        >>> metric = SquadF1()
        >>> metric.update(["It is Paris"], ["Paris, France"], index=[0])
        >>> metric.compute()
        tensor(0.4000, dtype=torch.float64)
    """

    def marks(self, predictions: Sequence[str], answers: Answers) -> Tensor:
        """F1 of each row."""
        return squad_f1(predictions, answers, self.strict)


class WholeWordMatch(_OpenAnswers):
    """Share of predictions that contain an accepted answer as whole words; see `whole_word_match`.

    Args:
        strict: SQuAD's normal form to the letter.

    Example:
        >>> metric = WholeWordMatch()
        >>> metric.update(["It is Paris."], [["Paris", "City of Light"]], index=[0])
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def marks(self, predictions: Sequence[str], answers: Answers) -> Tensor:
        """Whole-word match of each row."""
        return whole_word_match(predictions, answers, self.strict)


def _best(predictions: Sequence[str], answers: Answers, strict: bool, mark: Any) -> Tensor:
    """The best mark of each prediction over its accepted answers."""
    if len(predictions) != len(answers):
        raise ValueError(f"There are {len(predictions)} predictions and {len(answers)} answers. Pass one a row.")
    marks = []
    for row, (prediction, accepted) in enumerate(zip(predictions, answers, strict=True)):
        accepted = [accepted] if isinstance(accepted, str) else list(accepted)
        forms = [squad_normal_form(answer, strict) for answer in accepted]
        if not forms or not all(forms):
            raise ValueError(
                f"The accepted answers of row {row}, {accepted!r}, have no words in SQuAD's normal form, which deletes "
                "punctuation and the words a, an and the. Give another answer, or leave the row out."
            )
        text = squad_normal_form(prediction, strict)
        marks.append(max(mark(text, form) for form in forms))
    return torch.tensor(marks, dtype=torch.float64)
