"""Line figures with a common horizontal axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.plots.style import DASHES, MARKERS, PALETTE, matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "curve_figure", "line_figure"]

ROUND = [1, 2, 5, 10]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 250, 50, 44, 12  # in points
_LONGEST = 16  # characters of a label
_FEW = 5  # lines whose labels have room for two rows each


class Line(NamedTuple):
    """One line of a figure.

    Args:
        name: Label at the end of the line.
        x: Horizontal positions.
        y: Values; NaN for a gap.
        colour: Index of colour, dash and marker; ``None`` for a reference line, grey and dotted.
        low: Lower bounds of a band around the line.
        high: Upper bounds of the band.
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
    from_zero: bool = True,
) -> Figure | None:
    """Draw lines with their names at their ends.

    Args:
        lines: The lines; those without a finite value are omitted.
        x_label: Name of the horizontal axis.
        share: Whether the values are shares, drawn from 0 to 100 %.
        palette: Colours, used in turn.
        text: Colour of the labels and of reference lines.
        grid: Colour of the grid.
        from_zero: Whether an axis of non-negative values starts at 0; not suitable for decibels.

    Returns:
        The figure, or ``None`` if no line has a finite value.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
    lines = [line._replace(y=_gaps(line.y)) for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return None
    rows = 2 if len(lines) <= _FEW else 1
    labels = [_label(line.name, rows) for line in lines]
    inner = HEIGHT - BOTTOM - TOP
    right = WIDTH - 24 - 7 * max(len(row) for label in labels for row in label)
    with mpl.rc_context({"font.size": 12}):
        figure = mpl.figure.Figure((WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, (right - LEFT) / WIDTH, inner / HEIGHT))
        colours = [text if line.colour is None else palette[line.colour % len(palette)] for line in lines]
        for place, (line, colour) in enumerate(zip(lines, colours, strict=True)):
            _draw_line(axes, line, colour, 3 + len(lines) - place)
        _curve_axes(axes, lines, x_label, share, text, grid, from_zero)
        low, high = axes.get_ylim()
        ends = [([v for v in line.y if not math.isnan(v)][-1] - low) / (high - low) for line in lines]
        sizes = [17 * len(label) / inner for label in labels]
        for label, colour, height in zip(labels, colours, _apart(ends, sizes), strict=True):
            axes.annotate(
                "\n".join(label),
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


def _label(name: str, rows: int) -> list[str]:
    """A name in at most so many rows, cut where it is longer."""
    found = wrap(name, _LONGEST) or [""]
    return found if len(found) <= rows else [*found[: rows - 1], found[rows - 1][: _LONGEST - 1] + "…"]


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


def _curve_axes(
    axes: Axes, lines: Sequence[Line], x_label: str, share: bool, text: str, grid: str, from_zero: bool
) -> None:
    """Scale and label the axes of curves."""
    ticker = matplotlib().ticker
    if share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    else:
        values = [value for line in lines for value in (*line.y, *(line.low or ())) if math.isfinite(value)]
        if from_zero and min(values) >= 0:
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
    plain(axes, "y", grid)
    axes.tick_params(labelcolor=text)


def _apart(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Move ``heights`` apart so that labels of these sizes do not overlap, and below 1, keeping their order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + (sizes[below] + sizes[above]) / 2)
    ceiling, last = 1.0, 0.0
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling - (last + sizes[i]) / 2 if last else ceiling)
        ceiling, last = placed[i], sizes[i]
    return placed
