"""Findings of the paper on dialogue judges, decided by paired differences between runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from lightning_unlearn.benchmarks.grid import Outcome
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.metrics.rating_metrics import RatingMetrics, compare_judges
from lightning_unlearn.dialogue.rating import Rating

__all__ = ["COMPARISONS", "Comparison", "agreement", "decided", "findings", "pooled", "rated"]

Runs = Mapping[str, Mapping[str, Outcome]]
"""Outcomes by subset and by the name of what was run."""


class Comparison(NamedTuple):
    """Two runs of one model, where a finding says that the first agrees more with human ratings.

    Args:
        finding: What the paper finds.
        first: Name of the run that should agree more.
        second: Name of the other.
    """

    finding: str
    first: str
    second: str


COMPARISONS = (
    Comparison("selected examples > random ones", "BM25 4-shot", "random 4-shot"),
    Comparison("selected examples > random ones", "dense 4-shot", "random 4-shot"),
    Comparison("analysis first > rating first", "analysis first", "rating first"),
    Comparison("fine-tuned > as it is", "fine-tuned, soft labels", "zero-shot"),
    Comparison("fine-tuned > as it is", "fine-tuned, expected score", "zero-shot"),
)
"""Comparisons within a model. Size is compared between models."""


def rated(outcome: Outcome) -> tuple[list[Rating], list[Dialogue]]:
    """Ratings of a run, and human ratings of the same dialogues."""
    scores = [math.nan if score is None else score for score in outcome["scores"]]
    ratings = [Rating(score, label) for score, label in zip(scores, outcome["labels"], strict=True)]
    shown = (Turn("user", ""),)  # its text has no part in the agreement
    rows = zip(outcome["ids"], outcome["human"], strict=True)
    return ratings, [Dialogue(name, shown, tuple(human)) for name, human in rows]


def agreement(outcome: Outcome, draws: int = 1000) -> dict[str, Interval]:
    """Statistics of a run with 95 % bootstrap intervals; NaN where it gave all dialogues one rating, or none."""
    names: Any = ("spearman", "pearson", "f1_macro", "accuracy", "mae")
    ratings, dialogues = rated(outcome)
    if all(math.isnan(rating.score) for rating in ratings):
        return dict.fromkeys(names, Interval(math.nan, math.nan, math.nan))
    metrics = RatingMetrics()
    metrics.update(ratings, dialogues)
    return metrics.intervals(names, draws=draws)


def decided(difference: Interval) -> str:
    """``"holds"`` or ``"reversed"`` where the interval is on one side of 0, otherwise ``"open"``.

    Example:
        >>> decided(Interval(0.1, 0.02, 0.2)), decided(Interval(0.1, -0.02, 0.2))
        ('holds', 'open')
    """
    if difference.low > 0:
        return "holds"
    return "reversed" if difference.high < 0 else "open"


def pooled(differences: list[Interval]) -> Interval:
    r"""Mean of independent differences, $\bar d \pm \frac1K \sqrt{\sum_k h_k^2}$ with half widths $h_k$.

    Example:
        >>> pooled([Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1)])
        Interval(value=0.1, low=0.029..., high=0.170...)
    """
    halves = torch.tensor([(part.high - part.low) / 2 for part in differences], dtype=torch.float64)
    mean, half = sum(part.value for part in differences) / len(differences), float(halves.norm()) / len(differences)
    return Interval(mean, mean - half, mean + half)


def findings(runs: Runs, models: tuple[str, ...], draws: int = 1000) -> list[dict[str, Any]]:
    """Each comparison: the difference of Spearman's correlations on each subset, their mean, and what that decides.

    Args:
        runs: Outcomes by subset and name; names of judges begin with that of the model and a colon.
        models: The models, the smallest first.
        draws: Bootstrap samples.
    """
    wanted = [(c.finding, f"{model}: {c.first}", f"{model}: {c.second}") for model in models for c in COMPARISONS]
    for large, small in zip(models[1:], models, strict=False):
        wanted += [("larger > smaller", f"{large}: {name}", f"{small}: {name}") for name in _ALONE]
    for model in models:
        wanted += [("fine-tuned > TF-IDF ridge", f"{model}: {name}", "TF-IDF + ridge") for name in _TUNED]
        wanted.append(("linear probe > TF-IDF ridge", f"{model}: linear probe", "TF-IDF + ridge"))
    found = [_compared(runs, *three, draws) for three in wanted]
    return [row for row in found if row is not None]


_ALONE = ("zero-shot", "fine-tuned, soft labels", "fine-tuned, expected score", "linear probe")
_TUNED = ("fine-tuned, soft labels", "fine-tuned, expected score")


def _compared(runs: Runs, finding: str, first: str, second: str, draws: int) -> dict[str, Any] | None:
    differences: dict[str, Interval] = {}
    for subset, outcomes in runs.items():
        if first in outcomes and second in outcomes:
            (a, dialogues), (b, _) = rated(outcomes[first]), rated(outcomes[second])
            if any(math.isfinite(x.score) and math.isfinite(y.score) for x, y in zip(a, b, strict=True)):
                differences[subset] = compare_judges(a, b, dialogues, draws=draws)["spearman"]
    finite = [part for part in differences.values() if math.isfinite(part.low)]
    if not differences:
        return None
    mean = pooled(finite) if finite else Interval(math.nan, math.nan, math.nan)
    return {
        "finding": finding,
        "first": first,
        "second": second,
        "differences": {subset: list(part) for subset, part in differences.items()},
        "mean": list(mean),
        "decided": decided(mean) if finite else "no correlation: one of them gives all dialogues one rating",
    }
