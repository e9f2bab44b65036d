"""Figures of evaluations, comparisons and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_unlearn.core.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "curve_figure", "density_figure", "gap_figure", "heat_map_figure", "outcome_figure"]

PALETTE = ("#c8430a", "#0b5cad", "#00805f", "#a8478f", "#5f6670", "#0e7c93", "#5b4bb5", "#7a6200")
"""Colours of the sets; the first four stay apart under colour blindness."""

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))  # lines on top of each other stay visible
MARKERS = "osD^"
ROUND = [1, 2, 5, 10]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 250, 50, 44, 12  # in points


def curve_figure(
    curves: Sequence[Evaluation],
    names: Sequence[str],
    measure: str,
    palette: Sequence[str] = PALETTE,
    text: str = "#333333",
    grid: str = "#dddddd",
) -> Figure | None:
    """Draw ``<name>_<measure>`` by training step for each set.

    Args:
        curves: The evaluations along the run.
        names: The sets, in the order of their colours.
        measure: ``"accuracy"`` (drawn from 0 to 100 %) or ``"nll"``.
        palette: Colours of the sets, used in turn.
        text: Colour of the labels.
        grid: Colour of the grid.

    Returns:
        The figure, or ``None`` if no set has a finite value.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
    lines = _finite_lines(curves, names, measure)
    if not lines:
        return None
    labels = {i: names[i] if len(names[i]) <= 16 else names[i][:15] + "…" for i in lines}
    inner = HEIGHT - BOTTOM - TOP
    right = WIDTH - 24 - 7 * max(map(len, labels.values()))
    with mpl.rc_context({"font.size": 12}):
        figure = mpl.figure.Figure((WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, (right - LEFT) / WIDTH, inner / HEIGHT))
        for i, values in lines.items():
            axes.plot(
                [evaluation.step for evaluation in curves],
                values,
                color=palette[i % len(palette)],
                linestyle=DASHES[i % len(DASHES)],
                marker=MARKERS[i % len(MARKERS)],
                linewidth=2.2,
                markersize=5,
                clip_on=False,
                zorder=3 + len(names) - i,
            )
        _curve_axes(axes, curves, measure, text, grid)
        low, high = axes.get_ylim()
        ends = [([v for v in values if not math.isnan(v)][-1] - low) / (high - low) for values in lines.values()]
        for i, height in zip(lines, _apart(ends, 17 / inner), strict=True):
            axes.annotate(
                labels[i],
                (1, height),
                (10, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                color=palette[i % len(palette)],
                weight="bold",
                verticalalignment="center",
                parse_math=False,
            )
    return figure


def _finite_lines(curves: Sequence[Evaluation], names: Sequence[str], measure: str) -> dict[int, list[float]]:
    """The values of each set that has a finite one, by the set's number; the others become gaps."""
    lines = {}
    for i, name in enumerate(names):
        values = [evaluation.metrics.get(f"{name}_{measure}", math.nan) for evaluation in curves]
        if any(map(math.isfinite, values)):
            lines[i] = [value if math.isfinite(value) else math.nan for value in values]
    return lines


def _curve_axes(axes: Axes, curves: Sequence[Evaluation], measure: str, text: str, grid: str) -> None:
    """Scale and label the axes of curves."""
    ticker = _matplotlib().ticker
    if measure == "accuracy":
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=ROUND))
        axes.yaxis.set_major_formatter("{x:.5g}")
    steps = {evaluation.step for evaluation in curves}
    if len(steps) == 1:
        axes.set_xticks([*steps])
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=ROUND, integer=True))
    axes.margins(x=0.02)
    axes.set_xlabel("training step", color=text)
    _plain(axes, "y", grid)
    axes.tick_params(labelcolor=text)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ``heights`` at least ``gap`` apart and below 1, keeping their order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    ceiling = 1.0
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def outcome_figure(rows: Mapping[str, Sequence[Mapping[str, float]]], sets: Sequence[str]) -> Figure:
    """Draw the accuracy of several methods on each set, the mean over runs with its range.

    Args:
        rows: For each method the metrics of its runs, with ``<set>_accuracy`` in [0, 1].
        sets: The sets, in the order of their colours.

    Returns:
        The figure, one line a method.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
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
        _plain(axes, "x")
        figure.legend(loc="outside upper center", ncols=len(sets), frameon=False)
    return figure


def gap_figure(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the average gap of methods to retraining, the mean over seeds with its range, a panel a scenario.

    Args:
        gaps: For each scenario and method the gaps of its runs, in percentage points.

    Returns:
        The figure, one line a method, the smallest gap on top; the axis is linear below 1.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
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
            _plain(axes, "x")
    return figure


def heat_map_figure(
    maps: Mapping[str, Sequence[Sequence[float]]],
    columns: Sequence[float],
    rows: Sequence[float],
    column_name: str,
    row_name: str,
    value_name: str,
) -> Figure:
    """Draw a value over two settings, a panel a map, on one logarithmic scale of colours with the numbers written in.

    Args:
        maps: For each title the values, a list a row.
        columns: The setting along a row.
        rows: The setting from row to row.
        column_name: Name of the former.
        row_name: Name of the latter.
        value_name: Name of the value.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
    wide = min(2, len(maps))
    high = math.ceil(len(maps) / wide)
    with mpl.rc_context({"font.size": 11}):
        figure = mpl.figure.Figure((4.5 * wide, 0.8 + 2.6 * high), layout="constrained")
        panels = figure.subplots(high, wide, squeeze=False).flatten()
        norm = mpl.colors.LogNorm(0.1, 100, clip=True)
        for axes, (title, values) in zip(panels, maps.items(), strict=False):
            image = axes.imshow(values, cmap="YlOrRd", norm=norm, aspect="auto")
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    text = f"{value:.1f}" if value <= 100 else "–"
                    axes.text(j, i, text, ha="center", va="center", color="white" if value > 20 else "black")
            axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
            axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
            axes.set_xlabel(column_name)
            axes.set_ylabel(row_name)
            axes.set_title(title, loc="left")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        for axes in panels[len(maps) :]:
            axes.set_axis_off()
        figure.colorbar(image, ax=list(panels), label=value_name)
    return figure


def density_figure(
    values: Sequence[Sequence[float]], layers: Sequence[str], kinds: Sequence[str], text: str = "#333333"
) -> Figure:
    """Draw the density of a mask by layer and kind of weight.

    Args:
        values: Shares in [0, 1], for each kind a value for each layer; NaN where a layer has no such weight.
        layers: Names of the layers, to the right.
        kinds: Names of the kinds, downwards.
        text: Colour of the labels.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
    with mpl.rc_context({"font.size": 10}):
        figure = mpl.figure.Figure((2.8 + 0.26 * max(8, len(layers)), 1.2 + 0.26 * len(kinds)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="Blues", aspect="auto", vmin=0)
        axes.set_xticks(range(len(layers)), layers)
        axes.set_yticks(range(len(kinds)), kinds, parse_math=False)
        axes.set_xlabel("layer", color=text)
        axes.tick_params(length=0, labelcolor=text)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, format=mpl.ticker.PercentFormatter(1, decimals=None))
        bar.set_label("may move", color=text)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelcolor=text)
    return figure


def _matplotlib() -> Any:
    """The package, with the modules that the figures need."""
    try:
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError:
        raise ImportError('Figures are drawn by matplotlib: pip install "lightning-unlearn[report]"') from None
    return matplotlib


def _plain(axes: Axes, lines: str, grid: str = "#dddddd") -> None:
    """Leave out frame and ticks, and draw the grid across one axis."""
    axes.tick_params(length=0, pad=7)
    axes.grid(axis=lines, color=grid, linewidth=1)  # type: ignore[arg-type]
    axes.spines[:].set_visible(False)
