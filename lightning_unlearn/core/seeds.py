"""Summaries over seeds: mean, standard deviation and confidence interval."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_unlearn.core.checks import finite, inside

__all__ = ["SeedMetric", "SeedSummary", "over_seeds"]


class SeedSummary(NamedTuple):
    """A number over seeds.

    Args:
        mean: Mean over the seeds.
        std: Standard deviation with $n - 1$ in the denominator; NaN for a single seed.
        ci: Half-width of the confidence interval of the mean; NaN for a single seed.
        n: Number of seeds.
    """

    mean: float
    std: float
    ci: float
    n: int


def over_seeds(values: Tensor, level: float = 0.95) -> SeedSummary:
    r"""Mean with Student's confidence interval, $\bar x \pm t_{n-1,\,(1+\mathrm{level})/2}\; s/\sqrt n$.

    Args:
        values: One number a seed, shape ``(n,)``.
        level: Level of the interval, in (0, 1).

    Returns:
        The summary. With a single seed, ``std`` and ``ci`` are NaN.

    Raises:
        ValueError: If there are no values, one is not finite, or the level is out of range.
        ImportError: If scipy is missing and there is more than one seed.

    Example:
        >>> over_seeds(torch.tensor([1.0]))
        SeedSummary(mean=1.0, std=nan, ci=nan, n=1)
    """
    finite("seeds", values)
    if values.dim() != 1:
        raise ValueError(f"values must have shape (seeds,), but got {tuple(values.shape)}.")
    inside("level", level, 0, 1)
    n, values = len(values), values.double()
    mean = float(values.mean())
    if n == 1:
        return SeedSummary(mean, math.nan, math.nan, 1)
    try:
        from scipy.stats import t
    except ImportError:
        raise ImportError('Confidence intervals need scipy: pip install "lightning-unlearn[metrics]"') from None
    std = float(values.std())
    return SeedSummary(mean, std, float(t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n), n)


class SeedMetric(Metric):
    """A metric of one number a seed; computes their mean, spread and confidence interval.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If the level is out of range.
    """

    full_state_update = False
    is_differentiable = False
    values: Any

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.level = inside("level", level, 0, 1)
        self.add_state("values", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)  # also of what torchmetrics gathers from a process without a seed

    def add(self, value: float) -> None:
        """Count one seed."""
        self.values.append(torch.tensor([value], dtype=torch.float64, device=self.device))

    def compute(self) -> SeedSummary:
        """Mean, standard deviation and half-width of the confidence interval over the seeds."""
        return over_seeds(dim_zero_cat(self.values) if len(self.values) else torch.empty(0), self.level)
