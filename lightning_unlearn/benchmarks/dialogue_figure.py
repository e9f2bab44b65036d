"""Figure of a judge: predicted against human ratings, and its calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.dialogue_findings import rated
from lightning_unlearn.benchmarks.grid import Outcome
from lightning_unlearn.core.plots.style import PALETTE, matplotlib, plain
from lightning_unlearn.dialogue.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration_bins", "judge_figure"]


def calibration_bins(scores: Tensor, human: Tensor, bins: int = 8) -> list[tuple[float, float]]:
    """Mean score and mean human rating of dialogues with like scores, as many in each bin.

    Args:
        scores: Scores, shape ``(N,)``.
        human: Mean ratings, shape ``(N,)``.
        bins: Number of bins, of which those that have no dialogue are left out.

    Example:
        >>> calibration_bins(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 3.0, 5.0]), 2)
        [(1.5, 2.0), (3.5, 4.0)]
    """
    parts = scores.argsort(stable=True).tensor_split(bins)
    return [(float(scores[part].mean()), float(human[part].mean())) for part in parts if len(part)]


def judge_figure(title: str, outcomes: Sequence[Outcome]) -> Figure:
    """Draw scores against people's mean ratings, and bins of them raw and calibrated.

    The calibration is fitted to every second dialogue and drawn on the others.

    Args:
        title: Name of the judge.
        outcomes: Its runs.

    Raises:
        ImportError: If matplotlib or scikit-learn is missing.
        ValueError: If there are fewer than 16 ratings.
    """
    pairs = [
        (rating.score, dialogue.mean)
        for outcome in outcomes
        for rating, dialogue in zip(*rated(outcome), strict=True)
        if math.isfinite(rating.score)
    ]
    if len(pairs) < 16:
        raise ValueError(f"A calibration needs at least 16 ratings, but {title} has {len(pairs)}.")
    scores, human = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    calibration = Calibration().fit(scores[::2], human[::2])
    mpl = matplotlib()
    with mpl.rc_context({"font.size": 12}):
        figure = mpl.figure.Figure((760 / 72, 380 / 72), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.scatter(scores, human, s=14, color=PALETTE[1], alpha=0.45, linewidth=0)
        _axes(left, "judge's score", "mean rating of people", title)
        others, calibrated = human[1::2], calibration(scores[1::2])
        for number, (name, values) in enumerate((("raw", scores[1::2]), ("calibrated", calibrated))):
            points = calibration_bins(values, others)
            right.plot(*zip(*points, strict=True), marker="os"[number], color=PALETTE[number], label=name)
        right.axline((3, 3), slope=1, color="#888888", linewidth=1)
        right.legend(frameon=False)
        _axes(right, "mean score of a bin", "mean rating of people", "calibration, held-out half")
    return figure


def _axes(axes: Axes, x_label: str, y_label: str, title: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=12)
    plain(axes, "both")
