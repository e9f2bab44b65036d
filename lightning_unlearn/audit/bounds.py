"""One-sided bounds of means over rows or entities, and of ratios of means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bounds", "Estimate", "Sample", "mean_bounds"]

Array = NDArray[np.float64]

CLUSTERS = 10
"""From so many entities on, bounds are bootstrapped over entities instead of computed from rows."""
RESAMPLES = 10_000
_SEED = 20_240_501  # of the bootstrap: the same scores give the same bounds


@dataclass(frozen=True)
class Bounds:
    r"""Mean of :math:`t_i = u_i - (1 - \theta) c_i - \theta o_i` at one threshold, with one-sided bounds.

    Args:
        threshold: :math:`\theta`. The ratio of the gate is at most that iff the mean is at most 0.
        mean: Mean over the rows.
        error: Its standard error.
        lower: Lower bound, one-sided, at the level of the gate.
        upper: Upper bound, one-sided, at the level of the gate.
        lower_any: Lower bound for a claim that any one of several tests can make (Bonferroni).
    """

    threshold: float
    mean: float
    error: float
    lower: float
    upper: float
    lower_any: float


class Sample(NamedTuple):
    """Rows with the two parts of ``t = a - threshold * b``.

    Args:
        a: First part, shape ``(N,)``.
        b: Second part, shape ``(N,)``.
        groups: Number of the entity of each row, shape ``(N,)``; ``None`` where rows are independent.
    """

    a: Array
    b: Array
    groups: NDArray[np.int64] | None = None


class Estimate:
    """Means of ``a`` and ``b``, summed over independent samples, with bounds of ``a - threshold * b`` and ``a / b``.

    Args:
        samples: One sample of paired rows, or two that are independent of each other.
        level: Level of the one-sided bounds.
        comparisons: Number of tests that ``lower_any`` is corrected for.
    """

    def __init__(self, samples: Sequence[Sample], level: float, comparisons: int = 1) -> None:
        self.samples, self.level, self.comparisons = samples, level, comparisons
        self.a, self.b = (sum(float(part.mean()) for part in parts) for parts in list(zip(*samples, strict=True))[:2])
        clusters = [int(s.groups.max()) + 1 for s in samples if s.groups is not None]
        self.method: Literal["normal", "bca"] = "bca" if clusters and min(clusters) >= CLUSTERS else "normal"
        if self.method == "bca":
            rng = np.random.default_rng(_SEED)
            self._draws = [_resampled(s, rng) for s in samples]
            self._left_out = [_left_out(s) for s in samples]

    def at(self, threshold: float) -> Bounds:
        """Mean of ``a - threshold * b`` with its bounds."""
        mean, alpha = self.a - threshold * self.b, 1 - self.level
        alphas = (alpha, 1 - alpha, alpha / self.comparisons)
        if self.method == "normal":
            error = sqrt(sum(_covariance(t, t) for t in (s.a - threshold * s.b for s in self.samples)))
            return Bounds(threshold, mean, error, *(mean + NormalDist().inv_cdf(q) * error for q in alphas))
        draws = _total(a - threshold * b for a, b in self._draws)
        left_out = [a - threshold * b for a, b in self._left_out]
        return Bounds(threshold, mean, float(np.std(draws, ddof=1)), *_bca(draws, mean, left_out, alphas))

    def gap_lower(self) -> float:
        """Lower bound of ``b``."""
        if self.method == "normal":
            return self.b - NormalDist().inv_cdf(self.level) * sqrt(sum(_covariance(s.b, s.b) for s in self.samples))
        draws = _total(b for _, b in self._draws)
        return _bca(draws, self.b, [b for _, b in self._left_out], (1 - self.level,))[0]

    def ratio(self) -> tuple[float | None, float | None]:
        """Bounds of ``a / b``: Fieller's, which agree with those of ``a - threshold * b``, or the bootstrap's.

        ``None`` where ``b`` may be 0, so that the ratio has no bounds.
        """
        if self.b <= 0:
            return None, None
        if self.method == "bca":
            return self._ratio_by_bootstrap()
        z2 = NormalDist().inv_cdf(self.level) ** 2
        square = self.b**2 - z2 * sum(_covariance(s.b, s.b) for s in self.samples)
        cross = self.a * self.b - z2 * sum(_covariance(s.a, s.b) for s in self.samples)
        rest = self.a**2 - z2 * sum(_covariance(s.a, s.a) for s in self.samples)
        if square <= 0:
            return None, None
        root = sqrt(max(0.0, cross**2 - square * rest))
        return (cross - root) / square, (cross + root) / square

    def _ratio_by_bootstrap(self) -> tuple[float | None, float | None]:
        below = _total(b for _, b in self._draws)
        if below.min() <= 0:
            return None, None
        left_out = []
        for s, (a, b) in zip(self.samples, self._left_out, strict=True):
            left_out.append((a + self.a - s.a.mean()) / (b + self.b - s.b.mean()))
        draws = _total(a for a, _ in self._draws) / below
        lower, upper = _bca(draws, self.a / self.b, left_out, (1 - self.level, self.level))
        return lower, upper


def mean_bounds(values: Array, level: float) -> tuple[float, float, float, float]:
    """Mean of independent values, its standard error, and its lower and upper one-sided bound."""
    mean, error = float(values.mean()), sqrt(_covariance(values, values))
    z = NormalDist().inv_cdf(level)
    return mean, error, mean - z * error, mean + z * error


def _covariance(a: Array, b: Array) -> float:
    """Covariance of two means of values in [-1, 1]; of a single row, whose spread is unknown, the largest possible."""
    if len(a) < 2:
        return 1.0
    value = float(((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1) / len(a))
    return value if abs(value) > 1e-30 else 0.0  # rounding of a constant


def _total(parts: object) -> Array:
    return np.sum(list(parts), axis=0)  # type: ignore[call-overload]


def _resampled(sample: Sample, rng: np.random.Generator) -> tuple[Array, Array]:
    """Means of ``a`` and ``b`` in each bootstrap sample of whole entities."""
    sizes, a, b = _sums(sample)
    entities = len(sizes)
    means: list[tuple[Array, Array]] = []
    step = max(1, 4_000_000 // entities)  # keeps the counts below 32 MB
    for start in range(0, RESAMPLES, step):
        counts = rng.multinomial(entities, np.full(entities, 1 / entities), size=min(step, RESAMPLES - start))
        rows = counts @ sizes
        means.append((counts @ a / rows, counts @ b / rows))
    return np.concatenate([x for x, _ in means]), np.concatenate([y for _, y in means])


def _left_out(sample: Sample) -> tuple[Array, Array]:
    """Means of ``a`` and ``b`` without each entity in turn."""
    sizes, a, b = _sums(sample)
    rows = sizes.sum() - sizes
    return (a.sum() - a) / rows, (b.sum() - b) / rows


def _sums(sample: Sample) -> tuple[Array, Array, Array]:
    """Number of rows, and sums of ``a`` and ``b``, of each entity."""
    groups = np.arange(len(sample.a)) if sample.groups is None else sample.groups
    sizes, a, b = np.bincount(groups), np.bincount(groups, sample.a), np.bincount(groups, sample.b)
    return sizes.astype(np.float64), a.astype(np.float64), b.astype(np.float64)


def _bca(draws: Array, value: float, left_out: Sequence[Array], quantiles: Sequence[float]) -> list[float]:
    """Bias-corrected and accelerated quantiles of a bootstrap (Efron 1987)."""
    if np.ptp(draws) <= 1e-12:
        return [value] * len(quantiles)
    normal = NormalDist()
    share = float(np.mean(draws < value) + np.mean(draws == value) / 2)
    bias = normal.inv_cdf(min(max(share, 0.5 / len(draws)), 1 - 0.5 / len(draws)))
    influence = [(len(x) - 1) * (x.mean() - x) for x in left_out]
    cubes = sum(float((x**3).sum()) / len(x) ** 3 for x in influence)
    squares = sum(float((x**2).sum()) / len(x) ** 2 for x in influence)
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = [bias + normal.inv_cdf(q) for q in quantiles]
    ranks = [normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted]
    return [float(x) for x in np.quantile(draws, ranks)]
