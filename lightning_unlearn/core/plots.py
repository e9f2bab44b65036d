"""Figures of evaluations, comparisons and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_unlearn.core.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Line",
    "Point",
    "curve_figure",
    "density_figure",
    "gap_figure",
    "heat_map_figure",
    "line_figure",
    "outcome_figure",
    "scatter_figure",
]

PALETTE = ("#c8430a", "#0b5cad", "#00805f", "#a8478f", "#5f6670", "#0e7c93", "#5b4bb5", "#7a6200")
"""Colours of the sets; the first four stay apart under colour blindness."""

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))  # lines on top of each other stay visible
MARKERS = "osD^"
ROUND = [1, 2, 5, 10]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 250, 50, 44, 12  # in points


class Line(NamedTuple):
    """One line of a figure.

    Args:
        name: Its label, at its end.
        x: Places.
        y: Values; a NaN is a gap.
        colour: Number of its colour, dash and marker; ``None`` for a line to compare with, grey and dotted.
        low: Lower bounds of a band around the line.
        high: Upper bounds.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


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
    steps = [evaluation.step for evaluation in curves]
    values = {name: [evaluation.metrics.get(f"{name}_{measure}", math.nan) for evaluation in curves] for name in names}
    lines = [Line(name, steps, y, i) for i, (name, y) in enumerate(values.items())]
    return line_figure(lines, "training step", measure == "accuracy", palette, text, grid)


def line_figure(
    lines: Sequence[Line],
    x_label: str,
    share: bool = False,
    palette: Sequence[str] = PALETTE,
    text: str = "#333333",
    grid: str = "#dddddd",
) -> Figure | None:
    """Draw lines with their names at their ends.

    Args:
        lines: The lines; those without a finite value are left out.
        x_label: Name of the horizontal axis.
        share: Whether the values are shares, drawn from 0 to 100 %.
        palette: Colours, used in turn.
        text: Colour of the labels, and of lines to compare with.
        grid: Colour of the grid.

    Returns:
        The figure, or ``None`` if no line has a finite value.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
    lines = [line._replace(y=_gaps(line.y)) for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return None
    labels = [line.name if len(line.name) <= 16 else line.name[:15] + "…" for line in lines]
    inner = HEIGHT - BOTTOM - TOP
    right = WIDTH - 24 - 7 * max(map(len, labels))
    with mpl.rc_context({"font.size": 12}):
        figure = mpl.figure.Figure((WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, (right - LEFT) / WIDTH, inner / HEIGHT))
        colours = [text if line.colour is None else palette[line.colour % len(palette)] for line in lines]
        for place, (line, colour) in enumerate(zip(lines, colours, strict=True)):
            _draw_line(axes, line, colour, 3 + len(lines) - place)
        _curve_axes(axes, lines, x_label, share, text, grid)
        low, high = axes.get_ylim()
        ends = [([v for v in line.y if not math.isnan(v)][-1] - low) / (high - low) for line in lines]
        for label, colour, height in zip(labels, colours, _apart(ends, 17 / inner), strict=True):
            axes.annotate(
                label,
                (1, height),
                (10, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                color=colour,
                weight="bold",
                verticalalignment="center",
                parse_math=False,
            )
    return figure


def _gaps(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def _draw_line(axes: Axes, line: Line, colour: str, above: int) -> None:
    i = line.colour
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linestyle=(0, (1.2, 1.4)) if i is None else DASHES[i % len(DASHES)],
        marker="." if i is None else MARKERS[i % len(MARKERS)],
        linewidth=2.2,
        markersize=5,
        clip_on=False,
        zorder=above,
    )
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, _gaps(line.low), _gaps(line.high), color=colour, alpha=0.18, linewidth=0, zorder=2)


def _curve_axes(axes: Axes, lines: Sequence[Line], x_label: str, share: bool, text: str, grid: str) -> None:
    """Scale and label the axes of curves."""
    ticker = _matplotlib().ticker
    if share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    else:
        if all(value >= 0 for line in lines for value in (*line.y, *(line.low or ())) if math.isfinite(value)):
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=ROUND))
        axes.yaxis.set_major_formatter("{x:.5g}")
    places = {x for line in lines for x in line.x}
    if len(places) == 1:
        axes.set_xticks([*places])
    else:
        whole = all(float(x).is_integer() for x in places)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=ROUND, integer=whole))
    axes.margins(x=0.02)
    axes.set_xlabel(x_label, color=text, parse_math=False)
    _plain(axes, "y", grid)
    axes.tick_params(labelcolor=text)


class Point(NamedTuple):
    """One point of a scatter plot: its label, its place, and the number of its colour (``None``: grey)."""

    name: str
    x: float
    y: float
    colour: int | None = 0


def scatter_figure(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    front: Sequence[tuple[float, float]] = (),
    palette: Sequence[str] = PALETTE,
    text: str = "#333333",
    grid: str = "#dddddd",
) -> Figure:
    """Draw points with their names beside them, and a Pareto front as a line through its points.

    Args:
        points: The points.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        front: The points of the front, in the order of the line.
        palette: Colours, used in turn.
        text: Colour of the labels, and of grey points.
        grid: Colour of the grid.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = _matplotlib()
    with mpl.rc_context({"font.size": 12}):
        figure = mpl.figure.Figure((640 / 72, 400 / 72), layout="constrained")
        axes = figure.add_subplot()
        if front:
            axes.plot(*zip(*front, strict=True), color=text, linewidth=1.4, linestyle=(0, (5, 3)), zorder=2)
        for point in points:
            i = point.colour or 0
            colour = text if point.colour is None else palette[i % len(palette)]
            axes.plot(point.x, point.y, MARKERS[i % len(MARKERS)], color=colour, markersize=8, zorder=3)
        axes.margins(0.12, 0.1)
        axes.set_xlabel(x_label, color=text, parse_math=False)
        axes.set_ylabel(y_label, color=text, parse_math=False)
        _plain(axes, "both", grid)
        axes.tick_params(labelcolor=text)
        figure.draw_without_rendering()  # the layout decides where a point is, and with it where there is room
        for point, place in zip(points, _free_places(axes, points), strict=True):
            axes.annotate(
                point.name,
                (point.x, point.y),
                place,
                textcoords="offset points",
                horizontalalignment="left" if place[0] > 0 else "right",
                verticalalignment="center",
                color=text,
                fontsize=11,
                parse_math=False,
                arrowprops={"arrowstyle": "-", "color": text, "linewidth": 0.6} if abs(place[1]) > 11 else None,
            )
    return figure


def _free_places(axes: Axes, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Offsets of the labels, in points, at which they cover neither each other nor a marker."""
    scale = 72 / axes.figure.dpi
    spots = [tuple(scale * axes.transData.transform((point.x, point.y))) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    right = 640 - 4
    places: list[tuple[float, float]] = []
    for point, (x, y) in zip(points, spots, strict=True):
        wide = 6.2 * len(point.name)
        options = [(side * 9, up) for up in (0, 11, -11, 22, -22, 33, -33) for side in (1, -1)]
        boxes = {o: (x + 9, y + o[1] - 7, x + 9 + wide, y + o[1] + 7) for o in options if o[0] > 0}
        boxes |= {o: (x - 9 - wide, y + o[1] - 7, x - 9, y + o[1] + 7) for o in options if o[0] < 0}
        fits = [o for o in options if boxes[o][0] > 40 and boxes[o][2] < right]
        free = [o for o in fits if not any(_overlap(boxes[o], other) for other in taken)]
        place = (free or fits or options)[0]
        taken.append(boxes[place])
        places.append(place)
    return places


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
