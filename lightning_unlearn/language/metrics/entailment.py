"""Entailment between generated and true answers, judged by a model that the user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_unlearn.core.checks import between, one_of
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.language.metrics.rouge import rouge
from lightning_unlearn.language.metrics.text_classifier import TextClassifier

__all__ = ["Entailment", "disagreement", "entailed"]

Direction = Literal["answer_entails_truth", "truth_entails_answer"]

_SHORT = 4  # words of a true answer that is no sentence


def entailed(
    judge: TextClassifier,
    predictions: Sequence[str],
    references: Sequence[str],
    questions: Sequence[str] | None = None,
    direction: Direction = "answer_entails_truth",
    min_rouge: float = 0.1,
) -> Tensor:
    """Whether each generated answer is judged to say what the true answer says.

    Published evaluations call the share "ES", which is also the name of extraction strength.

    Args:
        judge: The entailment class of a natural-language-inference model:
            ``TextClassifier("sileod/deberta-v3-base-tasksource-nli", "entailment")`` in published code.
        predictions: Generated answers.
        references: True answers.
        questions: The questions. Where they are given, a true answer of up to four words is read as
            ``"{question} {answer}"``, as two words alone are no statement.
        direction: ``"answer_entails_truth"`` for rows to forget and data other than TOFU's: the answer is the premise;
            ``"truth_entails_answer"`` for TOFU's retain rows, real authors and world facts, as published.
        min_rouge: A row with a ROUGE-L recall below it counts as not entailed, as published; 0 switches this off.

    Returns:
        Shape ``(N,)``, fp64, 0 or 1.

    Raises:
        ValueError: If the numbers of texts differ, or an option is unknown or out of range.
        ImportError: If rouge-score is missing and ``min_rouge`` is above 0.

    References:
        Yuan et al., *A Closer Look at Machine Unlearning for Large Language Models*, arXiv:2410.08109.
    """
    one_of("direction", direction, Direction)
    between("min_rouge", min_rouge, 0, 1)
    lengths = {len(predictions), len(references), len(questions) if questions is not None else len(references)}
    if len(lengths) > 1:
        raise ValueError(
            f"There are {len(predictions)} predictions and {len(references)} references"
            + (f" and {len(questions)} questions" if questions is not None else "")
            + ". Pass one a row."
        )
    statements = list(references)
    if questions is not None:
        pairs = zip(questions, references, strict=True)
        statements = [f"{question} {truth}" if len(truth.split()) <= _SHORT else truth for question, truth in pairs]
    premises, hypotheses = list(predictions), statements
    if direction == "truth_entails_answer":
        premises, hypotheses = hypotheses, premises
    marks = judge.chosen(premises, hypotheses).double()
    return marks * (rouge(predictions, references) >= min_rouge) if min_rouge else marks


def disagreement(matched: Tensor, entailed: Tensor) -> Tensor:
    """Share of rows on which whole-word match and entailment disagree: "not Paris" matches, and is not entailed.

    Args:
        matched: Marks of the one, 0 or 1, shape ``(N,)``.
        entailed: Marks of the other.

    Raises:
        ValueError: If there are no rows or the shapes differ.

    Example:
        >>> import torch
        >>> disagreement(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    if matched.shape != entailed.shape or matched.numel() == 0:
        raise ValueError(
            f"Marks of the same rows are needed, but got {tuple(matched.shape)} and {tuple(entailed.shape)}."
        )
    return (matched.bool() != entailed.bool().to(matched.device)).double().mean()


class Entailment(IndexedMetric):
    """Share of generated answers that are judged to say what the true answer says; see `entailed`.

    In [0, 1]; good is the retrained model's value on forget rows, and the original's on others.

    Args:
        model: Hub id or folder of a natural-language-inference model, or a `TextClassifier`.
        label: Name of its entailment class.
        direction: ``"answer_entails_truth"`` or ``"truth_entails_answer"``.
        min_rouge: ROUGE-L recall below which a row counts as not entailed.

    Raises:
        ValueError: If the model has no such class, or an option is unknown or out of range.
        ImportError: If transformers or rouge-score is missing.
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        model: str | os.PathLike[str] | TextClassifier,
        label: str = "entailment",
        direction: Direction = "answer_entails_truth",
        min_rouge: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.direction, self.min_rouge = (
            one_of("direction", direction, Direction),
            between("min_rouge", min_rouge, 0, 1),
        )
        self.judge = model if isinstance(model, TextClassifier) else TextClassifier(model, label)

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        questions: Sequence[str] | None = None,
        index: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Count generated answers beside the true ones and their questions, with the numbers of their rows."""
        marks = entailed(self.judge, predictions, references, questions, self.direction, self.min_rouge)
        self.record(index, value=marks)

    def compute(self) -> Tensor:
        """The share over all rows so far."""
        return self.kept().mean()
