"""Metrics of MUSE: verbatim memorisation, knowledge memorisation and privacy leakage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lightning_unlearn.core.checks import between, one_of
from lightning_unlearn.core.intervals import Interval, bootstrap_mean
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.functional.language.privacy import Convention, priv_leak
from lightning_unlearn.functional.roc import auc
from lightning_unlearn.language.metrics.rouge import rouge

__all__ = [
    "KNOWMEM_STOPS",
    "KnowMem",
    "Memorisation",
    "PrivLeak",
    "PrivLeakResult",
    "VerbMem",
    "first_tokens",
    "knowmem",
    "until_stop",
    "verbmem",
]

Variant = Literal["ou", "muse"]
Role = Literal["forget", "holdout", "retrained_forget", "retrained_holdout"]

KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")
"""Strings at the first of which an answer of KnowMem ends."""


class Memorisation(NamedTuple):
    """Summary of ROUGE-L F1 over rows, each number in [0, 1].

    Args:
        mean: Mean with its 95 % bootstrap interval.
        max: The largest.
        n: Number of rows.
    """

    mean: Interval
    max: float
    n: int


def until_stop(text: str, stops: Sequence[str] = KNOWMEM_STOPS, end: str = "") -> str:
    r"""A generated answer up to the first stop string, without white space around it.

    Args:
        text: The generated text.
        stops: Strings that end an answer.
        end: Text of the end-of-sequence token, at which open-unlearning cuts too.

    Example:
        >>> until_stop(" Paris\n\nQuestion: What is")
        'Paris'
    """
    for stop in (*stops, end):
        if stop:
            text = text.partition(stop)[0]
    return text.strip()


def first_tokens(tokenizer: Any, text: str, tokens: int = 128) -> str:
    """The beginning of a text, as MUSE cuts the true continuations of VerbMem.

    Args:
        tokenizer: A Hugging Face tokenizer. The token that it puts before a text counts, so 127 of 128 are left.
        text: The text.
        tokens: Number of tokens.
    """
    return str(tokenizer.decode(tokenizer(text, verbose=False)["input_ids"][:tokens], skip_special_tokens=True))


def verbmem(predictions: Sequence[str], references: Sequence[str], variant: Variant = "ou") -> Tensor:
    """Verbatim memorisation of each row: ROUGE-L F1 of 128 greedily generated tokens with the true continuation.

    Args:
        predictions: Generated continuations.
        references: The true ones, of as many tokens (`first_tokens`).
        variant: ``"ou"`` with a stemmer, as open-unlearning; ``"muse"`` without, as MUSE. The stemmer adds 0.001 to
            0.005 to published numbers.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1]. MUSE prints 100 times the mean.

    Raises:
        ValueError: If the numbers of texts differ, or the variant is unknown.
        ImportError: If rouge-score is missing.

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """
    return rouge(predictions, references, measure="f1", stemmer=one_of("variant", variant, Variant) == "ou")


def knowmem(predictions: Sequence[str], references: Sequence[str], variant: Variant = "ou", end: str = "") -> Tensor:
    r"""Knowledge memorisation of each row: ROUGE-L F1 of a few-shot answer of 32 tokens, cut at the first stop string.

    Args:
        predictions: Generated texts; they are cut here, see `until_stop`.
        references: True answers.
        variant: ``"ou"`` with a stemmer, ``"muse"`` without.
        end: Text of the end-of-sequence token, where special tokens are kept in the texts.

    Returns:
        Shape ``(N,)``, fp64, in [0, 1].

    Raises:
        ValueError: If the numbers of texts differ, or the variant is unknown.
        ImportError: If rouge-score is missing.

    Example:
        >>> knowmem(["Paris\n\nQuestion: And of Italy?"], ["Paris"])
        tensor([1.], dtype=torch.float64)

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """
    return verbmem([until_stop(text, end=end) for text in predictions], references, variant)


class VerbMem(IndexedMetric):
    """Verbatim memorisation: mean ROUGE-L F1 of greedy continuations, with its bootstrap interval.

    In [0, 1]; good is the retrained model's value. See `verbmem`.

    Args:
        variant: ``"ou"`` with a stemmer, ``"muse"`` without.

    Raises:
        ValueError: If the variant is unknown, or no row was seen.
        ImportError: If rouge-score is missing.

    Example:
        >>> metric = VerbMem()
        >>> metric.update(["the boy who lived"], ["The boy who lived."], index=[0])
        >>> metric.compute().mean.value
        1.0

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """

    higher_is_better: bool | None = None

    def __init__(self, variant: Variant = "ou", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant = one_of("variant", variant, Variant)

    def update(
        self, predictions: Sequence[str], references: Sequence[str], index: Tensor | Sequence[int] | None = None
    ) -> None:
        """Count generated texts beside the true ones, with the numbers of their rows."""
        self.record(index, value=self.rows_of(predictions, references))

    def rows_of(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """The value of each row, shape ``(B,)``."""
        return verbmem(predictions, references, self.variant)

    def compute(self) -> Memorisation:
        """Mean, largest value and number of rows so far."""
        values = self.kept()
        return Memorisation(bootstrap_mean(values), float(values.max()), len(values))


class KnowMem(VerbMem):
    r"""Knowledge memorisation: mean ROUGE-L F1 of few-shot answers, with its bootstrap interval.

    In [0, 1]; on forget rows good is the retrained model's value, on retain rows higher is more useful. See `knowmem`.

    Args:
        variant: ``"ou"`` with a stemmer, ``"muse"`` without.
        end: Text of the end-of-sequence token, where special tokens are kept in the texts.

    Raises:
        ValueError: If the variant is unknown, or no row was seen.
        ImportError: If rouge-score is missing.

    Example:
        >>> metric = KnowMem()
        >>> metric.update(["Paris\n\nQuestion: And of Italy?"], ["Paris"], index=[0])
        >>> metric.compute().mean.value
        1.0

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """

    def __init__(self, variant: Variant = "ou", end: str = "", **kwargs: Any) -> None:
        super().__init__(variant, **kwargs)
        self.end = end

    def rows_of(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """The value of each row, shape ``(B,)``."""
        return knowmem(predictions, references, self.variant, self.end)


class PrivLeakResult(NamedTuple):
    """Privacy leakage with the areas behind it.

    Args:
        priv_leak: In percent; 0 is ideal, negative means too little is forgotten, positive too much.
        auc: Area of the attack on the unlearned model, in the metric's convention.
        retrained_auc: That of the retrained model, or the number that stands for it.
        measured: Whether it was measured; a stand-in is right only if forget and holdout rows are of one distribution.
    """

    priv_leak: float
    auc: float
    retrained_auc: float
    measured: bool


class PrivLeak(IndexedMetric):
    r"""PrivLeak, $100\,(A_u - A_r)/(A_r + \epsilon)$, of the areas of a membership attack on two models.

    The published attack is Min-K with k = 40 %. See
    [`priv_leak`][lightning_unlearn.functional.language.privacy.priv_leak].

    Args:
        retrained: Stand-in for the retrained model's area where it has no rows.
        convention: Of the areas that are shown: ``"ou"``, the share of pairs in which the holdout row has the larger
            score, or ``"muse"``, its complement. The leakage is the same.

    Raises:
        ValueError: If an option is out of range or unknown, or a set of the unlearned model has no rows.

    Example:
        >>> import torch
        >>> metric = PrivLeak()
        >>> metric.update(torch.tensor([0.2, 0.5, 0.9]), "forget", index=[0, 1, 2])
        >>> metric.update(torch.tensor([1.0, 0.8, 1.5]), "holdout", index=[0, 1, 2])
        >>> round(metric.compute().priv_leak, 6)
        -77.777778

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, arXiv:2407.06460.
    """

    higher_is_better: bool | None = None

    def __init__(self, retrained: float = 0.5, convention: Convention = "ou", **kwargs: Any) -> None:
        super().__init__(sets=Role.__args__, **kwargs)  # type: ignore[attr-defined]
        self.retrained, self.convention = (
            between("retrained", retrained, 0, 1),
            one_of("convention", convention, Convention),
        )

    def update(self, scores: Tensor, role: Role, index: Tensor | Sequence[int] | None = None) -> None:
        """Count loss-like scores ``(B,)``, lower for rows that the model knows.

        Args:
            scores: Scores of the attack.
            role: ``"forget"`` or ``"holdout"``; ``"retrained_forget"`` or ``"retrained_holdout"`` under the retrained
                model.
            index: Numbers of the rows in their set.
        """
        self.record(index, one_of("role", role, Role), value=scores)

    def compute(self) -> PrivLeakResult:
        """The leakage over all rows so far."""
        measured = len(self.values("retrained_forget_index")) > 0
        unlearned, retrained = self._area(""), self._area("retrained_") if measured else self.retrained
        return PrivLeakResult(priv_leak(unlearned, retrained, self.convention), unlearned, retrained, measured)

    def _area(self, prefix: str) -> float:
        area = float(auc(self.kept(group=f"{prefix}holdout"), self.kept(group=f"{prefix}forget")))
        return area if self.convention == "ou" else 1 - area
