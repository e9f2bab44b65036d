"""ROUGE: overlap of generated answers with the true ones, by the package rouge-score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.row_metric import IndexedMetric

__all__ = ["Rouge", "rouge"]

Kind = Literal["rouge1", "rouge2", "rougeL"]
Measure = Literal["recall", "f1", "precision"]
Tokenizer = Callable[[str], list[str]]


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    kind: Kind = "rougeL",
    measure: Measure = "recall",
    stemmer: bool = True,
    tokenizer: Tokenizer | None = None,
) -> Tensor:
    r"""ROUGE of each generated answer; for ``"rougeL"`` with the longest common subsequence $L$ of words.

    $$R = \frac{L}{|\mathrm{reference}|}, \qquad P = \frac{L}{|\mathrm{prediction}|}, \qquad F_1 = \frac{2PR}{P+R}$$

    | published as | measure | stemmer |
    |---|---|---|
    | TOFU, open-unlearning's TOFU | ``"recall"`` | yes |
    | MUSE | ``"f1"`` | no |
    | open-unlearning's MUSE | ``"f1"`` | yes |

    Args:
        predictions: Generated answers.
        references: True answers, as many.
        kind: ``"rougeL"``, or ``"rouge1"`` or ``"rouge2"`` for words and pairs of words.
        measure: ``"recall"``, ``"f1"`` or ``"precision"``.
        stemmer: Whether words of more than three letters are compared by their stems (Porter).
        tokenizer: Splits a text into words. The package's own knows a-z and 0-9 alone.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1]; 0 where either text has no word.

    Raises:
        ValueError: If the numbers of texts differ, or an option is unknown.
        ImportError: If rouge-score is missing.

    Example:
        >>> rouge(["cat runs fast"], ["The cats were running"])
        tensor([0.5000], dtype=torch.float64)

    References:
        Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004.
    """
    one_of("kind", kind, Kind)
    one_of("measure", measure, Measure)
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} predictions and {len(references)} references. Pass one a row.")
    scorer = _scorer(kind, stemmer, tokenizer)
    _warn_without_words(references, scorer)
    field = "fmeasure" if measure == "f1" else measure
    scores = [getattr(scorer.score(t, p)[kind], field) for p, t in zip(predictions, references, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


class Rouge(IndexedMetric):
    """Mean ROUGE of generated answers, ROUGE-L recall with a stemmer by default.

    In [0, 1]. Good is the retrained model's value on forget rows, and the original's on others. See
    [`rouge`][lightning_unlearn.language.metrics.rouge.rouge] for the variants.

    Args:
        kind: ``"rougeL"``, ``"rouge1"`` or ``"rouge2"``.
        measure: ``"recall"``, ``"f1"`` or ``"precision"``.
        stemmer: Whether words are compared by their stems.
        tokenizer: Splits a text into words, for scripts other than Latin.

    Raises:
        ValueError: If an option is unknown, or no row was seen.
        ImportError: If rouge-score is missing.

    Example:
        >>> metric = Rouge()
        >>> metric.update(["cat runs fast"], ["The cats were running"], index=[0])
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)

    References:
        Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004.
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        kind: Kind = "rougeL",
        measure: Measure = "recall",
        stemmer: bool = True,
        tokenizer: Tokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kind, self.measure = one_of("kind", kind, Kind), one_of("measure", measure, Measure)
        self.stemmer, self.tokenizer = stemmer, tokenizer

    def update(
        self, predictions: Sequence[str], references: Sequence[str], index: Tensor | Sequence[int] | None = None
    ) -> None:
        """Count generated answers beside the true ones, with the numbers of their rows."""
        values = rouge(predictions, references, self.kind, self.measure, self.stemmer, self.tokenizer)
        self.record(index, value=values)

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()


class _Words:
    """A tokenizer as rouge-score takes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenize = tokenizer


def _scorer(kind: str, stemmer: bool, tokenizer: Tokenizer | None) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ImportError('ROUGE needs rouge-score: pip install "lightning-unlearn[metrics]"') from None
    return RougeScorer([kind], use_stemmer=stemmer, tokenizer=_Words(tokenizer) if tokenizer else None)


def _warn_without_words(references: Sequence[str], scorer: Any) -> None:
    empty = [text for text in references if text.strip() and not scorer._tokenizer.tokenize(text)]
    if empty:
        warnings.warn(
            f"{len(empty)} of {len(references)} references, such as {empty[0][:40]!r}, have no word that ROUGE knows, "
            "so their score is 0 whatever the model writes: it reads the letters a to z and digits. Give "
            "tokenizer=str.split, or one that knows the script.",
            stacklevel=3,
        )
