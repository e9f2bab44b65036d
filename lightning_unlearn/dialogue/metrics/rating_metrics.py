"""Agreement of a judge's ratings with those of people."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.distributed import world_size
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.metrics.statistics import (
    RatedPairs,
    Statistic,
    bootstrap_statistics,
    statistic,
    statistic_names,
)
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask, task_of

__all__ = ["DIALOGUE_STATISTICS", "TURN_STATISTICS", "RatingMetrics", "compare_judges"]

DIALOGUE_STATISTICS: tuple[Statistic, ...] = (
    *("spearman", "pearson", "kendall", "f1_macro", "accuracy", "mae", "kappa"),
)
"""What a judge of dialogues is measured by."""

TURN_STATISTICS: tuple[Statistic, ...] = ("uar", "kappa", "spearman", "f1_dissatisfied")
"""What the authors of USS measure judges of turns by: unweighted average recall of the five labels, Cohen's kappa,
Spearman's correlation, and F1 of the labels below the middle. Their code ranks equal numbers by the lowest of their
ranks and uses the formula for ranks without ties, so that its correlations are others than these."""


class RatingMetrics(IndexedMetric):
    r"""Agreement of ratings with those of people.

    Correlations (equal numbers share their rank, as in scipy) and ``mae`` compare scores with the annotators' mean;
    ``f1_macro``, ``accuracy``, ``kappa`` and ``uar`` compare labels with the annotators' majority, the lowest of
    several. ``parse_rate`` is the share of answers in which a rating was found; a score of NaN is left out of all
    others. ``vocab_mass``, where logits were read, is the mean probability of all labels within the vocabulary.

    A dialogue counts once, by its ``id``, however often a distributed sampler repeats it.

    Args:
        task: The scale, of which the label nearest to a score is what the judge says, where it does not say it itself.
        names: The statistics: `DIALOGUE_STATISTICS`, `TURN_STATISTICS` or others.
        draws: Bootstrap samples of dialogues for the intervals, as ``spearman_low`` and so on; none with 0.
        level: Level of the intervals, in (0, 1).
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there is no such statistic, or an option is out of range.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(str(i), (Turn("user", "Hi"),), (i,)) for i in (1, 2, 3, 4)]
        >>> metric = RatingMetrics()
        >>> metric.update([1.2, 2.0, 4.4, 3.1], rows)
        >>> found = metric.compute()
        >>> round(found["spearman"].item(), 4), found["accuracy"].item(), found["parse_rate"].item()
        (0.8, 0.5, 1.0)
    """

    def __init__(
        self,
        task: RatingTask | str = SATISFACTION,
        names: Sequence[Statistic] = DIALOGUE_STATISTICS,
        draws: int = 0,
        level: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(names=("score", "label", "mean", "true", "parsed", "mass"), **kwargs)
        self.task, self.statistics = task_of(task), statistic_names(names)
        self.draws, self.level, self.seed = draws, level, seed

    def update(self, ratings: Sequence[Rating | float] | Tensor, dialogues: Sequence[Dialogue]) -> None:
        """Add ratings.

        Args:
            ratings: One a dialogue: a [`Rating`][lightning_unlearn.Rating], or a score.
            dialogues: The dialogues, with ratings of annotators.

        Raises:
            ValueError: If there is not one rating a dialogue, or a dialogue has no ratings or one outside the scale.
        """
        if len(ratings) != len(dialogues):
            raise ValueError(f"There are {len(ratings)} ratings for {len(dialogues)} dialogues. Pass one a dialogue.")
        if not len(dialogues):
            return
        for dialogue in dialogues:
            self.task.check_on_scale(dialogue)
        given = [rating if isinstance(rating, Rating) else Rating(float(rating)) for rating in ratings]
        self.record(
            [_number(dialogue.id) for dialogue in dialogues],
            score=torch.tensor([rating.score for rating in given], dtype=torch.float64),
            label=torch.tensor([self._label(rating) for rating in given]),
            mean=torch.tensor([dialogue.mean for dialogue in dialogues], dtype=torch.float64),
            true=torch.tensor([self.task.nearest(dialogue.majority) for dialogue in dialogues]),
            parsed=torch.tensor([rating.parsed and rating.score == rating.score for rating in given]).long(),
            mass=torch.tensor([math.nan if rating.vocab_mass is None else rating.vocab_mass for rating in given]),
        )

    def compute(self) -> dict[str, Tensor]:
        """Each statistic, ``parse_rate``, and ``vocab_mass`` where logits were read; fp64.

        Raises:
            ValueError: If there are no ratings.
        """
        rows, pairs = self._rows()
        found = {"parse_rate": rows["parsed"].mean()}
        if not rows["mass"].isnan().all():
            found["vocab_mass"] = rows["mass"].nanmean()
        for name in self.statistics:
            found[name] = statistic(name, pairs) if len(pairs) else torch.tensor(torch.nan, dtype=torch.float64)
        self._warn(pairs)
        if self.draws and len(pairs):
            intervals = bootstrap_statistics([pairs], self.statistics, self.level, self.draws, self.seed)
            for measured, three in intervals.items():
                found[f"{measured}_low"], found[f"{measured}_high"] = (
                    torch.tensor(end, dtype=torch.float64) for end in (three.low, three.high)
                )
        return found

    def intervals(
        self,
        names: Sequence[Statistic] | None = None,
        level: float = 0.95,
        draws: int = 1000,
        seed: int = 0,
    ) -> dict[str, Interval]:
        """Statistics with percentile bootstrap intervals over dialogues, of the rows of all processes.

        Args:
            names: The statistics; by default those of the metric.
            level: Level of the intervals, in (0, 1).
            draws: Number of bootstrap samples.
            seed: Seed of the draws.

        Raises:
            ValueError: If there is no rating, or an option is out of range.
        """
        with self.sync_context(should_sync=world_size() > 1):
            _, pairs = self._rows()
        if not len(pairs):
            raise ValueError("No rating has a number, so there is nothing to give an interval of.")
        return bootstrap_statistics([pairs], statistic_names(names or self.statistics), level, draws, seed)

    def _rows(self) -> tuple[dict[str, Tensor], RatedPairs]:
        rows = {name: values.cpu() for name, values in self.unique_rows().items()}
        if not len(rows["score"]):
            raise ValueError("RatingMetrics has seen no ratings. Call update with them first.")
        there = ~rows["score"].isnan()
        score, mean = rows["score"][there], rows["mean"][there]
        predicted, true = rows["label"][there].long(), rows["true"][there].long()
        low = sum(value < self.task.middle for value in self.task.values)
        return rows, RatedPairs(score, mean, predicted, true, len(self.task.values), low)

    def _label(self, rating: Rating) -> int:
        if rating.label is not None and rating.label in self.task.labels:
            return self.task.labels.index(rating.label)
        return self.task.nearest(rating.score)

    def _warn(self, pairs: RatedPairs) -> None:
        for side, values in (("The judge gives", pairs.score), ("People give", pairs.mean)):
            if len(values) and (values == values[0]).all():
                warnings.warn(
                    f"{side} all {len(values)} dialogues the rating {float(values[0]):g}, so correlations are "
                    "undefined (NaN).",
                    stacklevel=3,
                )


def compare_judges(
    first: Sequence[Rating | float] | Tensor,
    second: Sequence[Rating | float] | Tensor,
    dialogues: Sequence[Dialogue],
    task: RatingTask | str = SATISFACTION,
    names: Sequence[Statistic] = ("spearman",),
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Differences between two judges, the first minus the second, with paired bootstrap intervals.

    Both are read in the same resamples of dialogues, so what makes a dialogue hard for both does not widen intervals.

    Args:
        first: One judge's ratings.
        second: The other's, of the same dialogues.
        dialogues: The dialogues, with ratings of annotators. Those that one of the two did not rate are left out.
        task: The scale.
        names: The statistics.
        level: Level of the intervals, in (0, 1).
        draws: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: If lengths differ, no dialogue has both ratings, or an option is out of range.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(str(i), (Turn("user", "Hi"),), (i % 5 + 1,)) for i in range(50)]
        >>> right, wrong = [row.mean for row in rows], [6 - row.mean for row in rows]
        >>> compare_judges(right, wrong, rows)["spearman"]
        Interval(value=2.0, low=2.0, high=2.0)
    """
    scores = [[r.score if isinstance(r, Rating) else float(r) for r in ratings] for ratings in (first, second)]
    if not len(scores[0]) == len(scores[1]) == len(dialogues):
        raise ValueError(
            f"There are {len(scores[0])} and {len(scores[1])} ratings for {len(dialogues)} dialogues. Pass one for "
            "each."
        )
    both = [i for i, (a, b) in enumerate(zip(*scores, strict=True)) if a == a and b == b]
    if not both:
        raise ValueError("No dialogue has a rating of both judges, so there is nothing to compare.")
    samples = []
    for ratings in (first, second):
        metric = RatingMetrics(task)
        chosen: list[Any] = [ratings[i] for i in both]
        metric.update(chosen, [dialogues[i] for i in both])
        samples.append(metric._rows()[1])
    return bootstrap_statistics(samples, statistic_names(names), level, draws, seed)


def _number(name: str) -> int:
    """A number for an ``id``, small enough for fp64 to hold."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 12
