"""Calibration of a judge's scores to the ratings of people."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, inside
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.intervals import Interval, bootstrap
from lightning_unlearn.dialogue.fingerprint import JudgeFingerprint, fingerprint_dialogues
from lightning_unlearn.dialogue.rating import RatesDialogues, finite_numbers
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask, task_of
from lightning_unlearn.functional.dialogue.correlation import spearman

__all__ = ["LEAST_DIALOGUES", "Calibration"]

LEAST_DIALOGUES = 8
"""Rated dialogues that a calibration needs."""


class Calibration:
    r"""A rising function from a judge's scores to what people would say, with intervals for single dialogues.

    It is fitted to rated dialogues that the judge has seen neither in training nor as examples. Half of them, at
    random, make the function $g$ by isotonic regression. The others say how far it is off, by split conformal
    prediction:

    $$C(s) = [g(s) - q, g(s) + q], \qquad q = R_{(\lceil (n + 1) \ell \rceil)}, \qquad R_i = |y_i - g(s_i)|$$

    The mean rating $y$ of a new dialogue, drawn as those of the second half are, is in $C(s)$ with a probability of at
    least $\ell$, whatever the judge and the distribution, and of at most $\ell + 1/(n+1)$ where no two residuals are
    equal. That holds on average over dialogues, and not for those of one score. Intervals are cut off at the ends of
    the scale; with fewer than $\ell / (1 - \ell)$ dialogues in the second half they are the whole scale.

    Args:
        task: The scale of people's ratings.
        share: Share of the dialogues that the function is fitted to, in (0, 1); the others make the intervals.
        seed: Seed of the split, and of the bootstrap of the correlation.
        level: Level of the correlation's interval, in (0, 1), by which the judge is trusted.
        draws: Bootstrap samples of that interval.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> scores = torch.linspace(0, 1, 80)
        >>> calibration = Calibration().fit(scores, 1 + 4 * scores.square())
        >>> calibration.trusted, round(float(calibration(torch.tensor([0.5]))), 1)
        (True, 2.0)

    References:
        Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005; Lei et al., *Distribution-Free
        Predictive Inference for Regression*, arXiv:1604.04173.
    """

    spearman: Interval
    """Correlation of scores and ratings of all dialogues that it was fitted to."""

    fingerprint: JudgeFingerprint | None = None
    """What its judge is recognized by; ``None`` if it was fitted to scores alone."""

    def __init__(
        self,
        task: RatingTask | str = SATISFACTION,
        share: float = 0.5,
        seed: int = 0,
        level: float = 0.95,
        draws: int = 1000,
    ) -> None:
        task = task_of(task)
        self.low, self.high = task.values[0], task.values[-1]
        self.share, self.seed = inside("share", share, 0, 1), seed
        self.level, self.draws = inside("level", level, 0, 1), at_least("draws", draws, 1)

    def fit(
        self,
        scores: Sequence[float] | Tensor,
        human: Sequence[float] | Tensor,
        floor: float | None = None,
        judge: RatesDialogues | Sequence[float] | None = None,
    ) -> Calibration:
        """Fit to rated dialogues.

        People rate few dialogues of broken models. Below the lowest score that was fitted, the function is constant, so
        that a model whose conversations fall apart hardly seems to lose anything. With ``floor``, it falls linearly
        from there to the bottom of people's scale at that score. This part is an assumption, and no interval covers it.

        Args:
            scores: The judge's scores, shape ``(N,)``. Leave out those that could not be parsed.
            human: Mean ratings, shape ``(N,)``.
            floor: The score of a dialogue that is certainly bad, such as 1 of a `ProbeExtractor` with ``known_bad``.
            judge: The judge, or its scores of `fingerprint_dialogues`, so that audits and callbacks notice if the
                calibration is used with another one.

        Returns:
            Itself.

        Raises:
            ImportError: If scikit-learn is missing.
            TypeError: If they are not numbers.
            ValueError: If there are fewer than eight dialogues, lengths differ, a number is not finite, or a rating is
                out of range.
        """
        x, y = finite_numbers("scores", scores), finite_numbers("ratings", human)
        if len(x) != len(y):
            raise ValueError(f"There are {len(x)} scores for {len(y)} ratings. Pass one a dialogue.")
        at_least("the number of dialogues", len(x), LEAST_DIALOGUES, "a calibration to fewer would be noise")
        if y.min() < self.low or y.max() > self.high:
            raise ValueError(
                f"Ratings must be in [{self.low:g}, {self.high:g}], but are in [{y.min():g}, {y.max():g}]. Pass the "
                "task with their scale."
            )
        self.spearman = self._correlation(x, y)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        first = min(max(2, round(self.share * len(x))), len(x) - 2)
        self.scores, self.ratings = _isotonic(x[order[:first]], y[order[:first]], self.low, self.high)
        if floor is not None and floor < self.scores[0]:
            self.scores, self.ratings = [floor, *self.scores], [self.low, *self.ratings]
        rest = order[first:]
        self.residuals: list[float] = (y[rest] - self(x[rest])).abs().sort().values.tolist()
        self.fingerprint = None if judge is None else JudgeFingerprint.of(_own_scores(judge), float(x.std()))
        return self

    @property
    def trusted(self) -> bool:
        """Whether the judge agrees with people at all: the interval of its correlation is above 0."""
        return self._fitted().spearman.low > 0  # NaN is not

    def require_trust(self) -> None:
        """Refuse a judge that is not trusted.

        Raises:
            ValueError: If the interval of the correlation includes 0 or is below it.
        """
        if not self.trusted:
            value, low, high = self.spearman
            raise ValueError(
                f"The judge's scores do not agree with people's ratings: Spearman's correlation is {value:.3f}, with "
                f"the {self.level:.0%} interval [{low:.3f}, {high:.3f}], which is not above 0. Use a better judge, or "
                "more rated dialogues."
            )

    def require_judge(self, judge: RatesDialogues) -> None:
        """Refuse another judge than the one that it was fitted to, where its fingerprint is known.

        Args:
            judge: Rates the dialogues of the fingerprint.

        Raises:
            ValueError: If its scores are too far from those of the fingerprint.
        """
        if self.fingerprint is not None:
            self.fingerprint.check(judge)

    def __call__(self, scores: Sequence[float] | Tensor | float) -> Tensor:
        """Calibrated scores of the same shape, fp64; NaN stays NaN.

        Raises:
            RuntimeError: If it is not fitted.
        """
        self._fitted()
        given = torch.as_tensor(scores, dtype=torch.float64).cpu()
        found = [_piecewise(float(score), self.scores, self.ratings) for score in given.flatten()]
        return torch.tensor(found, dtype=torch.float64).reshape(given.shape)

    def interval(self, score: float, level: float = 0.9) -> Interval:
        """The calibrated score, with an interval for the mean rating of one dialogue.

        Args:
            score: The judge's score.
            level: Probability that the interval has the rating, in (0, 1).

        Raises:
            RuntimeError: If it is not fitted.
            ValueError: If the score is not a number, or ``level`` is out of range.
        """
        inside("level", level, 0, 1)
        if math.isnan(score):
            raise ValueError("The score is NaN: the judge has found no rating, so there is nothing to calibrate.")
        value, far = float(self(score)), self.half_width(level)
        return Interval(value, max(self.low, value - far), min(self.high, value + far))

    def half_width(self, level: float = 0.9) -> float:
        """The half width $q$ of intervals before they are cut off, infinite where there are too few dialogues."""
        residuals = self._fitted().residuals
        # 0.9 * 20 is 18.000000000000004 for some levels: without rounding, the next residual would be taken.
        place = math.ceil(round((len(residuals) + 1) * inside("level", level, 0, 1), 9))
        return residuals[place - 1] if place <= len(residuals) else math.inf

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON.

        Raises:
            RuntimeError: If it is not fitted.
        """
        self._fitted()
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields["spearman"] = [None if math.isnan(number) else number for number in self.spearman]
        if self.fingerprint is not None:
            fields["judge"] = self.fingerprint.state_dict()
        write_text(path, json.dumps({"format": _FORMAT, **fields}, indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what ``save`` has written.

        Raises:
            ValueError: If it is another file.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}.") from None
        missing = {*_FIELDS, "spearman"} - set(fields) if isinstance(fields, dict) else {"format"}
        if missing or fields.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a file of Calibration.save: it must have the format {_FORMAT!r}.")
        made = cls(share=fields["share"], seed=fields["seed"], level=fields["level"], draws=fields["draws"])
        for name in _FIELDS:
            setattr(made, name, fields[name])
        made.spearman = Interval(*(math.nan if number is None else number for number in fields["spearman"]))
        if fields.get("judge") is not None:
            made.fingerprint = JudgeFingerprint.from_state_dict(fields["judge"])
        return made

    def _correlation(self, x: Tensor, y: Tensor) -> Interval:
        if (x == x[0]).all() or (y == y[0]).all():
            return Interval(math.nan, math.nan, math.nan)
        # A resample in which one side is constant agrees with nothing.
        both = torch.stack([x, y], dim=1)
        return bootstrap(
            both, lambda rows: spearman(rows[:, 0], rows[:, 1]).nan_to_num(0.0)[None], self.level, self.draws, self.seed
        )[0]

    def _fitted(self) -> Calibration:
        if not hasattr(self, "scores"):
            raise RuntimeError("The calibration is not fitted. Call fit(scores, human) with rated dialogues first.")
        return self


_FORMAT = "lightning-unlearn calibration 1"
_FIELDS = ("low", "high", "share", "seed", "level", "draws", "scores", "ratings", "residuals")


def _own_scores(judge: RatesDialogues | Sequence[float]) -> list[float]:
    """A judge's scores of the dialogues of a fingerprint."""
    if isinstance(judge, RatesDialogues):
        return [rating.score for rating in judge.rate(fingerprint_dialogues())]
    return list(judge)


def _isotonic(x: Tensor, y: Tensor, low: float, high: float) -> tuple[list[float], list[float]]:
    """Corners of the rising function with the least squared error."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise ImportError('Calibration needs scikit-learn: pip install "lightning-unlearn[dialogue]"') from None
    model: Any = IsotonicRegression(y_min=low, y_max=high, increasing=True, out_of_bounds="clip")
    model.fit(x.numpy(), y.numpy())
    return model.X_thresholds_.tolist(), model.y_thresholds_.tolist()


def _piecewise(score: float, scores: Sequence[float], ratings: Sequence[float]) -> float:
    """The linear function through some corners, constant beyond them."""
    if math.isnan(score):
        return math.nan
    right = bisect_left(scores, score)
    if right == 0 or right == len(scores):
        return ratings[min(right, len(scores) - 1)]
    part = (score - scores[right - 1]) / (scores[right] - scores[right - 1])
    return ratings[right - 1] + part * (ratings[right] - ratings[right - 1])
