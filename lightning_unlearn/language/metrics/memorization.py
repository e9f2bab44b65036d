"""Extraction strength and exact memorisation as metrics over the rows of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.functional.language.extraction import StrengthVariant, exact_memorization, extraction_strength

__all__ = ["ExactMemorization", "ExtractionStrength"]


class ExtractionStrength(IndexedMetric):
    r"""Mean extraction strength, the share at the end of an answer that the model completes greedily, $1 - k/n$.

    In [0, 1]; good is the retrained model's value. See
    [`extraction_strength`][lightning_unlearn.functional.language.extraction.extraction_strength].

    Args:
        variant: ``"strict"``: 0 where the last token is wrong; ``"floored"`` as in open-unlearning: $1/n$ there.
        drop_last: Leave out the last token of each answer, the one that ends it, as open-unlearning does.

    Raises:
        ValueError: If the variant is unknown, or no row was seen.

    Example:
        >>> metric = ExtractionStrength()
        >>> metric.update([torch.tensor([True, False, True, True, True, False])], index=[0])
        >>> metric.compute()
        tensor(0.6000, dtype=torch.float64)

    References:
        Wang et al., *Towards Effective Evaluations and Comparisons for LLM Unlearning Methods*, arXiv:2406.09179.
    """

    higher_is_better: bool | None = None

    def __init__(self, variant: StrengthVariant = "strict", drop_last: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant, self.drop_last = one_of("variant", variant, StrengthVariant), drop_last

    def update(self, hits: Sequence[Tensor], index: Tensor | Sequence[int] | None = None) -> None:
        """Count rows: of each, whether every token of the answer is the likeliest one (``TokenStats.hit``)."""
        values = _values(hits, self.drop_last, lambda hit: extraction_strength(hit, self.variant))
        self.record(index, value=values)

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()


class ExactMemorization(IndexedMetric):
    r"""Mean share of an answer's tokens that are the likeliest ones, $\frac1n\sum_t \mathrm{hit}_t$.

    In [0, 1]; good is the retrained model's value, 0.58 to 0.71 on TOFU.

    Args:
        drop_last: Leave out the last token of each answer, the one that ends it, as open-unlearning does.

    Raises:
        ValueError: If no row was seen.

    Example:
        >>> metric = ExactMemorization()
        >>> metric.update([torch.tensor([True, False, True, True, True, False])], index=[0])
        >>> metric.compute()
        tensor(0.8000, dtype=torch.float64)

    References:
        Tirumala et al., *Memorization Without Overfitting*, arXiv:2205.10770.
    """

    higher_is_better: bool | None = None

    def __init__(self, drop_last: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop_last = drop_last

    def update(self, hits: Sequence[Tensor], index: Tensor | Sequence[int] | None = None) -> None:
        """Count rows: of each, whether every token of the answer is the likeliest one (``TokenStats.hit``)."""
        self.record(index, value=_values(hits, self.drop_last, exact_memorization))

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.kept().mean()


def _values(hits: Sequence[Tensor], drop_last: bool, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """The number of each row, NaN for a row without a token."""
    parts = [hit[: len(hit) - 1] if drop_last else hit for hit in hits]
    return torch.tensor([float(measure(part)) if len(part) else torch.nan for part in parts], dtype=torch.float64)
