"""A number over seeds: mean, spread, and how well the mean is known."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from lightning_unlearn.core.checks import finite

__all__ = ["SeedSummary", "over_seeds"]


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
        The summary. One seed says nothing about the spread, so its ``std`` and ``ci`` are NaN.

    Raises:
        ValueError: If there are no values, one is not finite, or the level is out of range.
        ImportError: If scipy is missing and there is more than one seed.

    Example:
        >>> import torch
        >>> over_seeds(torch.tensor([1.0]))
        SeedSummary(mean=1.0, std=nan, ci=nan, n=1)
    """
    finite("seeds", values)
    if values.dim() != 1:
        raise ValueError(f"values must have shape (seeds,), but got {tuple(values.shape)}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), such as 0.95, but got {level}.")
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
