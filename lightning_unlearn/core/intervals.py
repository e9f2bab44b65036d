"""Confidence intervals of proportions and means."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, finite, inside
from lightning_unlearn.functional.language.leak import clopper_pearson_upper

__all__ = ["Interval", "bootstrap", "bootstrap_mean", "clopper_pearson", "wilson"]


class Interval(NamedTuple):
    """A number with its two-sided confidence interval."""

    value: float
    low: float
    high: float


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> Interval:
    r"""A proportion with its exact binomial interval (Clopper-Pearson).

    $$[B^{-1}(\tfrac\alpha2; k, n-k+1),\ B^{-1}(1-\tfrac\alpha2; k+1, n-k)]$$

    Args:
        hits: Number of hits $k$.
        n: Number of trials, at least 1.
        level: Level $1 - \alpha$, in (0, 1).

    Raises:
        ValueError: If the counts are impossible or the level is out of range.

    Example:
        >>> clopper_pearson(0, 100)
        Interval(value=0.0, low=0.0, high=0.036...)
    """
    _check_counts(hits, n, level)
    tail = (1 - level) / 2
    bounds = clopper_pearson_upper(torch.tensor([n - hits, hits]), n, tail)
    return Interval(hits / n, 1 - float(bounds[0]), float(bounds[1]))


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    r"""A proportion with Wilson's score interval.

    $$\frac{k + z^2/2 \pm z \sqrt{k (n-k) / n + z^2/4}}{n + z^2}, \qquad z = \Phi^{-1}(1 - \tfrac\alpha2)$$

    Args:
        hits: Number of hits $k$.
        n: Number of trials, at least 1.
        level: Level $1 - \alpha$, in (0, 1).

    Raises:
        ValueError: If the counts are impossible or the level is out of range.

    Example:
        >>> wilson(20, 20)
        Interval(value=1.0, low=0.8388..., high=1.0)
    """
    _check_counts(hits, n, level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, width = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    low, high = ((centre + end) / (n + z * z) for end in (-width, width))
    return Interval(hits / n, low if hits else 0.0, high if hits < n else 1.0)


def bootstrap_mean(values: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval over rows.

    Args:
        values: One number a row, shape ``(N,)``.
        level: Level of the interval, in (0, 1).
        draws: Number of resamples.
        seed: Seed of the draw, apart from the global random state.

    Raises:
        ValueError: If there are no values, one is not finite, or an option is out of range.

    Example:
        >>> bootstrap_mean(torch.tensor([1.0, 1.0, 1.0]))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    return bootstrap(values, lambda rows: rows.mean(0, keepdim=True), level, draws, seed)[0]


def bootstrap(
    values: Tensor, statistic: Callable[[Tensor], Tensor], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> list[Interval]:
    """Statistics of rows with their percentile bootstrap intervals, all from the same resamples of rows.

    Args:
        values: Numbers of each row, shape ``(N, ...)``.
        statistic: Gives the statistics, shape ``(D,)``, of the values of some rows, in fp64.
        level: Level of the intervals, in (0, 1).
        draws: Number of resamples.
        seed: Seed of the draw, apart from the global random state.

    Returns:
        One interval a statistic.

    Raises:
        ValueError: If there are no values, one is not finite, or an option is out of range.
    """
    finite("values", values)
    inside("level", level, 0, 1)
    at_least("draws", draws, 1)
    values = values.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    # Draw by draw: all at once would take draws x N numbers.
    resampled = torch.stack(
        [statistic(values[torch.randint(len(values), (len(values),), generator=generator)]) for _ in range(draws)]
    )
    tail = (1 - level) / 2
    low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0).tolist()
    return [Interval(*three) for three in zip(statistic(values).tolist(), low, high, strict=True)]


def _check_counts(hits: int, n: int, level: float) -> None:
    at_least("n", n, 1)
    inside("level", level, 0, 1)
    if not 0 <= hits <= n:
        raise ValueError(f"There can't be {hits} hits in {n} trials.")
