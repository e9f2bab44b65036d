"""Model utility: harmonic mean of nine columns of TOFU's evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.row_metric import IndexedMetric

__all__ = ["MODEL_UTILITY", "ModelUtility", "harmonic_mean", "model_utility"]

Part = Literal[
    "retain_probability",
    "retain_rouge",
    "retain_truth_ratio",
    "real_authors_probability",
    "real_authors_rouge",
    "real_authors_truth_ratio",
    "world_facts_probability",
    "world_facts_rouge",
    "world_facts_truth_ratio",
]

MODEL_UTILITY: tuple[str, ...] = Part.__args__  # type: ignore[attr-defined]
"""Names of the nine columns: three sets, none of them the forget set, by three metrics."""


def harmonic_mean(values: Iterable[float]) -> float:
    r"""Harmonic mean, $k / \sum_i \frac{1}{x_i}$; 0 where any value is 0.

    Args:
        values: At least one number, none negative.

    Raises:
        ValueError: If there are no values, or one is negative or NaN.

    Example:
        >>> harmonic_mean([1.0, 0.5]), harmonic_mean([1.0, 0.0])
        (0.6666666666666666, 0.0)
    """
    values = [float(value) for value in values]
    if not values or not all(value >= 0 for value in values):
        raise ValueError(f"A harmonic mean needs values of at least 0, but got {values}.")
    return len(values) / math.fsum(1 / value for value in values) if all(values) else 0.0


def model_utility(parts: Mapping[str, float]) -> float:
    r"""Model utility, the harmonic mean of nine columns.

    They are {retain, real authors, world facts} x {probability, ROUGE-L recall, truth ratio}: the probability of retain
    rows plain and of the others normalised over their options, and the truth ratio as $\max(0, 1 - R)$.

    Args:
        parts: The columns by the names in ``MODEL_UTILITY``, each in [0, 1].

    Returns:
        In [0, 1]; higher is more useful. 0 where any column is 0.

    Raises:
        ValueError: If a column is missing or unknown, negative or NaN.

    Example:
        >>> model_utility({**dict.fromkeys(MODEL_UTILITY, 0.5), "retain_rouge": 0.0})
        0.0

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """
    if set(parts) != set(MODEL_UTILITY):
        missing, unknown = sorted(set(MODEL_UTILITY) - set(parts)), sorted(set(parts) - set(MODEL_UTILITY))
        raise ValueError(f"Model utility is of nine columns, but {missing} are missing and {unknown} are unknown.")
    return harmonic_mean(parts[name] for name in MODEL_UTILITY)


class ModelUtility(IndexedMetric):
    """Model utility over all rows of the nine columns; see `model_utility`.

    Raises:
        ValueError: If a column has no rows.

    Example:
        >>> metric = ModelUtility()
        >>> for part in MODEL_UTILITY:
        ...     metric.update(part, torch.tensor([0.5, 1.0]), index=[0, 1])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    higher_is_better: bool | None = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(sets=MODEL_UTILITY, **kwargs)

    def update(self, part: Part, values: Tensor, index: Tensor | Sequence[int] | None = None) -> None:
        """Count the values ``(B,)`` of some rows of a column, with the numbers of the rows in their set."""
        self.record(index, one_of("part", part, Part), value=values)

    def compute(self) -> Tensor:
        """The harmonic mean of the columns' means over all rows so far."""
        utility = model_utility({part: float(self.kept(group=part).mean()) for part in MODEL_UTILITY})
        return torch.tensor(utility, dtype=torch.float64, device=self.device)
