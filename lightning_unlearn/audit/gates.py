"""Gates of an audit: tests whether a model knows more of the rows than one that never saw them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isfinite, log
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_unlearn.audit.bounds import Bounds, Estimate, Sample, mean_bounds
from lightning_unlearn.core.checks import above, at_least, inside

__all__ = ["GATES", "Degeneration", "GateResult", "Utility", "degeneration", "gate", "utility"]

Array = NDArray[np.float64]

GATES = {
    "base": "questions as they were trained",
    "paraphrase": "questions in other words",
    "int8": "weights rounded to 8 bits",
    "int4": "weights rounded to 4 bits",
    "relearning": "training on some of the rows again",
    "relearning_out_of_domain": "training on unrelated rows",
    "sampling": "many sampled answers",
    "activation_noise": "noise on the activations",
}
"""Names of the gates that the verdict rests on, and what each tries, in words. The quick depth has the first four."""


@dataclass(frozen=True)
class GateResult:
    r"""One test of the verdict: a score of the unlearned model between those of the control and the original.

    Args:
        gate: What was tried, see `GATES`.
        score: Name of the score.
        variant: Which of several settings of the attack this is; ``""`` where there is one.
        n: Number of probes.
        clusters: Number of entities that they are about; 0 where none are named.
        method: ``"normal"`` for bounds from the standard error over rows, ``"bca"`` for the bootstrap over entities.
        level: Level of the one-sided bounds.
        comparisons: Number of tests that ``lower_any`` is corrected for.
        original: Mean score of the original model.
        control: Mean score of the control.
        unlearned: Mean score of the unlearned model.
        kappa: :math:`(u - c) / (o - c)` of the means: 0 is as if never seen, 1 untouched, below 0 less than never seen.
            ``None`` where the original scores no higher than the control.
        kappa_lower: One-sided lower bound of ``kappa``; ``None`` where it has none.
        kappa_upper: One-sided upper bound of ``kappa``; ``None`` where it has none.
        gap: Mean of :math:`o - c`.
        gap_lower: One-sided lower bound of ``gap``.
        over: At the threshold :math:`-d`: less than never seen.
        small: At the threshold :math:`d`.
        large: At the threshold :math:`D`.
        zero_bound: Where no probe leaks: the largest rate of leaks that so many probes can miss, at the level.
        noise_floor: ``kappa`` of a second control against the first; ``None`` without a second one.
        original_matched: Where matched rows are the control: their mean score on the original; ``control`` is that on
            the unlearned model.
    """

    gate: str
    score: str
    variant: str
    n: int
    clusters: int
    method: str
    level: float
    comparisons: int
    original: float
    control: float
    unlearned: float
    kappa: float | None
    kappa_lower: float | None
    kappa_upper: float | None
    gap: float
    gap_lower: float
    over: Bounds
    small: Bounds
    large: Bounds
    zero_bound: float | None = None
    noise_floor: float | None = None
    original_matched: float | None = None

    @property
    def name(self) -> str:
        """Name of the gate with its variant and score."""
        return f"{self.gate} ({', '.join(part for part in (self.variant, self.score) if part)})"

    @property
    def passed(self) -> bool:
        """Whether ``kappa <= d`` is established."""
        return self.small.upper <= 0 and (self.zero_bound is None or self.zero_bound <= self.small.threshold)

    @property
    def recovers(self) -> bool:
        """Whether ``kappa > d`` is established, at the level for any one of the tests."""
        return self.small.lower_any > 0

    @property
    def known(self) -> bool:
        """Whether ``kappa > D`` is established."""
        return self.large.lower > 0

    @property
    def traceable(self) -> bool:
        """Whether ``kappa < -d`` is established: the model knows less than one that never saw the rows."""
        return self.over.upper < 0

    @property
    def needed(self) -> int | None:
        r"""Number of probes that decides, :math:`(z s / T)^2`; ``None`` where the mean is at the threshold."""
        if self.small.mean == 0:
            return None
        z = NormalDist().inv_cdf(self.level)
        by_spread = ceil(self.n * (z * self.small.error / self.small.mean) ** 2 - 1e-9)
        if self.zero_bound is None:
            return by_spread
        return max(by_spread, ceil(log(1 - self.level) / log(1 - self.small.threshold) - 1e-9))


@dataclass(frozen=True)
class Utility:
    """What is left of an ability that was to be kept: the mean of ``u - share * c``.

    Args:
        name: What was measured, such as ``"retain"``.
        n: Number of rows.
        share: Share of the reference's score that is to be left.
        control: Mean score of the reference: the retrained model, or the original where there is none.
        unlearned: Mean score of the unlearned model.
        mean: Mean of ``u - share * c``.
        error: Its standard error.
        lower: One-sided lower bound.
        upper: One-sided upper bound; below 0, less than the share is left.
    """

    name: str
    n: int
    share: float
    control: float
    unlearned: float
    mean: float
    error: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Degeneration:
    """How much more often than the reference's the answers are empty, repeated or gibberish.

    Args:
        name: What was counted, such as ``"empty"``.
        n: Number of answers.
        control: Rate of the reference: the retrained model, or the original where there is none.
        unlearned: Rate of the unlearned model.
        mean: Difference of the rates.
        error: Its standard error.
        lower: One-sided lower bound.
        upper: One-sided upper bound.
    """

    name: str
    n: int
    control: float
    unlearned: float
    mean: float
    error: float
    lower: float
    upper: float


def gate(
    original: ArrayLike,
    control: ArrayLike | Sequence[ArrayLike] | None,
    unlearned: ArrayLike,
    d: float = 0.10,
    D: float = 0.25,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    *,
    comparisons: int = 1,
    name: str = "base",
    score: str = "score",
    variant: str = "",
    matched: tuple[ArrayLike, ArrayLike] | None = None,
) -> GateResult:
    r"""Compare what a model knows of some rows with the model before and a control, all under the same stress.

    The ratio :math:`\kappa = (\bar u - \bar c) / (\bar o - \bar c)` of the mean scores is at most :math:`\theta` where
    the mean of :math:`t_i = u_i - (1 - \theta) c_i - \theta o_i` is at most 0. Decisions use the latter, which needs no
    division. Its bounds are :math:`\bar t \pm z s / \sqrt n`; with 10 or more clusters, those of the BCa bootstrap over
    clusters (Efron 1987). Without a control, :math:`c = 0`. Of several controls, each bound is the worse one.

    Args:
        original: Score of each probe on the model before, in [0, 1], shape ``(N,)``.
        control: Scores of the control, shape ``(N,)``; a list of them of several controls; ``None`` without one, and
            with ``matched``.
        unlearned: Scores of the unlearned model, shape ``(N,)``.
        d: Ratio up to which rows count as forgotten.
        D: Ratio from which on they count as not forgotten.
        clusters: Whom or what each probe is about; blank entries stand for themselves.
        level: Level of each one-sided bound.
        comparisons: Number of tests of the whole verdict, for the bounds of "any of them recovers".
        name: Name of the gate, see `GATES`.
        score: Name of the score.
        variant: Which setting of the attack this is.
        matched: Scores of rows like these that neither model has seen, on the original and on the unlearned model, each
            of shape ``(M,)``. They take the control's place:
            :math:`\kappa = (\bar u - \bar u_h) / (\bar o - \bar o_h)`.

    Raises:
        ValueError: If scores are missing, of different lengths, NaN or outside [0, 1], or ``d`` is not below ``D``.

    Example:
        >>> result = gate([1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1])
        >>> round(result.kappa, 3), round(result.small.mean, 3), result.passed
        (0.333, 0.175, False)
    """
    inside("level", level, 0.5, 1)
    above("d", d, 0)
    if not d < D <= 1:
        raise ValueError(f"d must be less than D, and D at most 1, but got d={d} and D={D}.")
    at_least("comparisons", comparisons, 1)
    o, u = _scores("original", original), _scores("unlearned", unlearned)
    controls = _controls(control, len(o))
    for other, values in (("unlearned", u), *((f"control {k}", c) for k, c in enumerate(controls))):
        if len(values) != len(o):
            raise ValueError(f"The {other} model has {len(values)} scores, but the original has {len(o)}: one a probe.")
    groups = _groups(clusters, len(o))
    result = partial(_result, name, score, variant, o, u, groups, (d, D, level, comparisons))
    if matched is None:
        every = [result([Sample(u - c, o - c, groups)], float(c.mean())) for c in controls]
        return every[0] if len(every) == 1 else _worst(every, o, controls)
    if control is not None:
        raise ValueError("Give either a control, or matched rows in its place.")
    o_h, u_h = _scores("matched original", matched[0]), _scores("matched unlearned", matched[1])
    if len(o_h) != len(u_h):
        raise ValueError(f"The matched rows have {len(o_h)} scores on the original and {len(u_h)} on the unlearned.")
    found = result([Sample(u, o, groups), Sample(-u_h, -o_h)], float(u_h.mean()))
    return replace(found, original_matched=float(o_h.mean()))


def utility(name: str, control: ArrayLike, unlearned: ArrayLike, share: float = 0.9, level: float = 0.95) -> Utility:
    """Measure what is left of an ability: the mean over rows of ``u - share * c``, with one-sided bounds.

    Args:
        name: What is measured, such as ``"retain"`` or ``"general"``.
        control: Scores of the control, in [0, 1], shape ``(N,)``; of the original where the control never learned them.
        unlearned: Scores of the unlearned model, shape ``(N,)``.
        share: Share that is to be left.
        level: Level of each bound.

    Raises:
        ValueError: If scores are missing, of different lengths, NaN or outside [0, 1].

    Example:
        >>> utility("retain", [1, 1, 1, 1], [1, 1, 1, 1]).mean.__round__(3)
        0.1
    """
    c, u = _pair(name, control, unlearned)
    mean, error, lower, upper = mean_bounds(u - share * c, level)
    return Utility(name, len(u), share, float(c.mean()), float(u.mean()), mean, error, lower, upper)


def degeneration(name: str, control: ArrayLike, unlearned: ArrayLike, level: float = 0.95) -> Degeneration:
    """Compare rates of degenerate answers: the mean over rows of ``u - c``, with one-sided bounds.

    Args:
        name: What is counted, such as ``"empty"``, ``"repeated"`` or ``"gibberish"``.
        control: 1 for each answer of the control that is so, 0 for the others, shape ``(N,)``.
        unlearned: The same of the unlearned model.
        level: Level of each bound.

    Raises:
        ValueError: If values are missing, of different lengths, NaN or outside [0, 1].

    Example:
        >>> degeneration("empty", [0, 0, 0, 1], [1, 1, 0, 1]).mean
        0.5
    """
    c, u = _pair(name, control, unlearned)
    mean, error, lower, upper = mean_bounds(u - c, level)
    return Degeneration(name, len(u), float(c.mean()), float(u.mean()), mean, error, lower, upper)


def _result(
    name: str,
    score: str,
    variant: str,
    original: Array,
    unlearned: Array,
    groups: NDArray[np.int64] | None,
    settings: tuple[float, float, float, int],
    samples: list[Sample],
    control: float,
) -> GateResult:
    d, D, level, comparisons = settings
    estimate = Estimate(samples, level, comparisons)
    kappa_lower, kappa_upper = estimate.ratio()
    small, rows = estimate.at(d), len(unlearned)
    silent = small.error == 0 or not unlearned.any()
    return GateResult(
        gate=name,
        score=score,
        variant=variant,
        n=rows,
        clusters=0 if groups is None else int(groups.max()) + 1,
        method=estimate.method,
        level=level,
        comparisons=comparisons,
        original=float(original.mean()),
        control=control,
        unlearned=float(unlearned.mean()),
        kappa=estimate.a / estimate.b if estimate.b > 0 else None,
        kappa_lower=kappa_lower,
        kappa_upper=kappa_upper,
        gap=estimate.b,
        gap_lower=estimate.gap_lower(),
        over=estimate.at(-d),
        small=small,
        large=estimate.at(D),
        zero_bound=1 - (1 - level) ** (1 / rows) if silent else None,
    )


def _worst(results: list[GateResult], original: Array, controls: list[Array]) -> GateResult:
    """The result against the control that leaves most to explain, with the worse of each bound."""
    worst = max(results, key=lambda result: result.small.upper)

    def merged(of: str) -> Bounds:
        every = [getattr(result, of) for result in results]
        lower, lower_any = min(x.lower for x in every), min(x.lower_any for x in every)
        return replace(getattr(worst, of), lower=lower, lower_any=lower_any, upper=max(x.upper for x in every))

    first, second = controls[0].mean(), controls[1].mean()
    gap = float(original.mean() - first)
    return replace(
        worst,
        over=merged("over"),
        small=merged("small"),
        large=merged("large"),
        gap=min(result.gap for result in results),
        gap_lower=min(result.gap_lower for result in results),
        kappa_lower=_least([result.kappa_lower for result in results], min),
        kappa_upper=_least([result.kappa_upper for result in results], max),
        noise_floor=float(second - first) / gap if gap > 0 else None,
    )


def _least(values: list[float | None], choose: Any) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if len(known) == len(values) else None


def _controls(control: Any, rows: int) -> list[Array]:
    if control is None:
        return [np.zeros(rows)]
    several = len(control) > 0 and np.ndim(control[0]) > 0
    return [_scores("control", values) for values in (control if several else [control])]


def _groups(clusters: Sequence[Hashable] | None, rows: int) -> NDArray[np.int64] | None:
    if clusters is None:
        return None
    if len(clusters) != rows:
        raise ValueError(f"There are {len(clusters)} clusters, but {rows} scores: one a probe.")
    named = [None if entity in ("", None) else entity for entity in clusters]
    if not any(entity is not None for entity in named):
        return None
    numbers: dict[Hashable, int] = {}
    keys: list[Hashable] = [(row,) if entity is None else entity for row, entity in enumerate(named)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _pair(name: str, control: ArrayLike, unlearned: ArrayLike) -> tuple[Array, Array]:
    c, u = _scores(f"{name} of the control", control), _scores(f"{name} of the unlearned model", unlearned)
    if len(c) != len(u):
        raise ValueError(f"{name} has {len(c)} values of the control, but {len(u)} of the unlearned model: one a row.")
    return c, u


def _scores(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"Scores of {name} must be a list of one number a row, but got the shape {array.shape}.")
    bad = [float(x) for x in array if not isfinite(x) or not -1e-6 <= x <= 1 + 1e-6]
    if bad:
        raise ValueError(
            f"Scores of {name} must be in [0, 1], but {len(bad)} of {len(array)} are not, such as {bad[0]}."
        )
    return np.clip(array, 0, 1)
