"""Scatter plots with a name beside each point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_unlearn.core.plots.style import MARKERS, PALETTE, matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "scatter_figure"]


class Point(NamedTuple):
    """One point of a scatter plot: its label, its position, and the index of its colour (``None``: grey)."""

    name: str
    x: float
    y: float
    colour: int | None = 0


def scatter_figure(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    front: Sequence[tuple[float, float]] = (),
    share: bool = False,
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
        share: Whether both measurements are shares, written as percentages.
        palette: Colours, used in turn.
        text: Colour of the labels, and of grey points.
        grid: Colour of the grid.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
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
        if share:
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g}%")  # a narrow axis needs decimals
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g}%")
        axes.set_xlabel(x_label, color=text, parse_math=False)
        axes.set_ylabel(y_label, color=text, parse_math=False)
        plain(axes, "both", grid)
        axes.tick_params(labelcolor=text)
        figure.draw_without_rendering()  # the layout determines the positions of points, and thereby the free space
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
    """Offsets of the labels, in points, at which they cover neither one another nor a marker."""
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
