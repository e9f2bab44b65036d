"""Statistics of ratings against those of people, for one sample of dialogues or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, inside, one_of
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.functional.dialogue.agreement import class_counts, cohen_kappa, macro_f1, macro_recall
from lightning_unlearn.functional.dialogue.correlation import kendall, pearson, spearman

__all__ = ["RatedPairs", "Statistic", "bootstrap_statistics", "statistic_names"]

Statistic = Literal["spearman", "pearson", "kendall", "f1_macro", "accuracy", "mae", "kappa", "uar", "f1_dissatisfied"]

_CHUNK = 1 << 21  # numbers that are resampled at a time


@dataclass(frozen=True, eq=False)
class RatedPairs:
    """Ratings of the same dialogues by a judge and by people, each of shape ``(N,)``.

    Args:
        score: The judge's scores, fp64.
        mean: Mean rating of the annotators, fp64.
        predicted: Number of the judge's label, int64.
        true: Number of the label of the annotators' majority, int64.
        classes: How many labels there are.
        low_classes: How many of them, from the lowest on, say that people are dissatisfied.
    """

    score: Tensor
    mean: Tensor
    predicted: Tensor
    true: Tensor
    classes: int
    low_classes: int

    def __len__(self) -> int:
        return len(self.score)

    def at(self, rows: Tensor) -> RatedPairs:
        """Samples of rows, shape ``(D, N)``, as pairs with that shape."""
        score, mean, predicted, true = (side[rows] for side in (self.score, self.mean, self.predicted, self.true))
        return RatedPairs(score, mean, predicted, true, self.classes, self.low_classes)

    @property
    def counts(self) -> Tensor:
        """How often each label is given for each label of the majority."""
        return class_counts(self.predicted, self.true, self.classes)


def statistic_names(names: Iterable[str]) -> tuple[Statistic, ...]:
    """Names, if all are those of statistics.

    Raises:
        ValueError: If one is not.
    """
    return tuple(one_of("names", name, Statistic) for name in names)  # type: ignore[arg-type]


def statistic(name: Statistic, pairs: RatedPairs) -> Tensor:
    """A statistic of pairs, over their last dimension."""
    if name == "kendall":
        return kendall(pairs.score, pairs.mean)
    return _VECTORISED[name](pairs)


def bootstrap_statistics(
    samples: Sequence[RatedPairs],
    names: Sequence[Statistic],
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Statistics with percentile bootstrap intervals, or the differences of those of two judges.

    Args:
        samples: The pairs of one judge; or of two, row by row of the same dialogues, for the first minus the second.
            Both are read in the same resamples.
        names: The statistics.
        level: Level of the intervals, in (0, 1).
        draws: Number of resamples. Those without a statistic, such as a correlation of equal numbers, are left out.
        seed: Seed of the draws.

    Returns:
        An interval a name; NaN where the statistic is.
    """
    inside("level", level, 0, 1)
    at_least("draws", draws, 1)
    count = len(samples[0])
    generator = torch.Generator().manual_seed(seed)
    chunks = torch.arange(draws).split(max(1, _CHUNK // count))
    found: dict[Statistic, list[Tensor]] = {name: [] for name in names}
    for chunk in chunks:
        rows = torch.randint(count, (len(chunk), count), generator=generator)
        for name in names:
            found[name].append(_difference([_resampled(name, pairs, rows) for pairs in samples]))
    values = {name: _difference([statistic(name, pairs) for pairs in samples]) for name in names}
    return {name: _interval(float(values[name]), torch.cat(found[name]), level) for name in names}


def _resampled(name: Statistic, pairs: RatedPairs, rows: Tensor) -> Tensor:
    if name != "kendall":
        return statistic(name, pairs.at(rows))
    times = torch.zeros(rows.shape, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double())
    return kendall(pairs.score, pairs.mean, times)


def _difference(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else values[0] - values[1]


def _interval(value: float, drawn: Tensor, level: float) -> Interval:
    drawn = drawn[~drawn.isnan()]
    if value != value or not len(drawn):
        return Interval(value, torch.nan, torch.nan)
    tail = (1 - level) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=drawn.dtype)).tolist()
    return Interval(value, low, high)


def _f1_dissatisfied(pairs: RatedPairs) -> Tensor:
    low = class_counts(
        (pairs.predicted >= pairs.low_classes).long(), (pairs.true >= pairs.low_classes).long(), 2
    )  # class 0: dissatisfied
    return 2 * low[..., 0, 0] / (low[..., 0, :].sum(-1) + low[..., :, 0].sum(-1)).clamp(min=1)


_VECTORISED: dict[str, Callable[[RatedPairs], Tensor]] = {
    "spearman": lambda pairs: spearman(pairs.score, pairs.mean),
    "pearson": lambda pairs: pearson(pairs.score, pairs.mean),
    "f1_macro": lambda pairs: macro_f1(pairs.counts),
    "accuracy": lambda pairs: (pairs.predicted == pairs.true).double().mean(-1),
    "mae": lambda pairs: (pairs.score - pairs.mean).abs().mean(-1),
    "kappa": lambda pairs: cohen_kappa(pairs.counts),
    "uar": lambda pairs: macro_recall(pairs.counts),
    "f1_dissatisfied": _f1_dissatisfied,
}
assert {*_VECTORISED, "kendall"} == set(get_args(Statistic))
