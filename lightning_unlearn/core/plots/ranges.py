"""Figures of means with their range over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_unlearn.core.plots.style import MARKERS, PALETTE, matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gap_figure", "outcome_figure"]


def outcome_figure(rows: Mapping[str, Sequence[Mapping[str, float]]], sets: Sequence[str]) -> Figure:
    """Draw the accuracy of several methods on each set, the mean over runs with its range.

    Args:
        rows: Metrics of the runs of each method, with ``<set>_accuracy`` in [0, 1].
        sets: The sets, in the order of their colours.

    Returns:
        The figure, with one line per method.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
    drawn = {name: runs for name, runs in rows.items() if runs}
    with mpl.rc_context({"font.size": 11}):
        figure = mpl.figure.Figure((8, 0.6 + 0.34 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        for i, part in enumerate(sets):
            values = [[run[f"{part}_accuracy"] for run in runs] for runs in drawn.values()]
            means = [sum(v) / len(v) for v in values]
            spread = [
                [m - min(v) for m, v in zip(means, values, strict=True)],
                [max(v) - m for m, v in zip(means, values, strict=True)],
            ]
            places = [row + 0.16 * (i - (len(sets) - 1) / 2) for row in range(len(drawn))]
            color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
            axes.errorbar(means, places, xerr=spread, fmt=marker, color=color, markersize=6, label=part, clip_on=False)
        axes.set_yticks(range(len(drawn)), list(drawn))
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
        axes.set_xlabel("questions answered correctly")
        plain(axes, "x")
        figure.legend(loc="outside upper center", ncols=len(sets), frameon=False)
    return figure


def gap_figure(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the average gap of methods to retraining, the mean over seeds with its range, one panel per scenario.

    Args:
        gaps: Gaps of the runs for each scenario and method, in percentage points.

    Returns:
        The figure, with one line per method and the smallest gap on top; the axis is linear below 1.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
    lines = max(len(methods) for methods in gaps.values())
    with mpl.rc_context({"font.size": 11}):
        figure = mpl.figure.Figure((4.5 * len(gaps), 1 + 0.32 * lines), layout="constrained")
        panels = figure.subplots(1, len(gaps), squeeze=False)[0]
        for axes, (scenario, methods) in zip(panels, gaps.items(), strict=True):
            drawn = sorted((sum(v) / len(v), min(v), max(v), name) for name, v in methods.items() if v)
            for place, (mean, low, high, name) in enumerate(drawn):
                ours = name.startswith("UGradSL")
                color, marker = (PALETTE[0], MARKERS[1]) if ours else (PALETTE[1], MARKERS[0])
                axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt=marker, color=color, clip_on=False)
            axes.set_yticks(range(len(drawn)), [name for *_, name in drawn])
            axes.set_ylim(len(drawn) - 0.5, -0.5)
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(0, 100)
            axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
            axes.set_title(scenario, loc="left")
            axes.set_xlabel("average gap to retraining, points")
            plain(axes, "x")
    return figure
