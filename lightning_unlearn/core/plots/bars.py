"""Bar charts with error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_unlearn.core.plots.style import PALETTE, matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BarSet", "bar_figure"]

WIDTH, BAR, GAP, TOP, BOTTOM, RIGHT = 400, 9, 8, 30, 42, 24  # in points


class BarSet(NamedTuple):
    """Bars of one colour, one for each name.

    Args:
        name: Label in the legend.
        values: Lengths of the bars; NaN for a missing bar.
        colour: Index of the colour; ``None`` for grey.
        low: Lower ends of the error bars.
        high: Upper ends of the error bars.
    """

    name: str
    values: Sequence[float]
    colour: int | None = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def bar_figure(
    names: Sequence[str],
    sets: Sequence[BarSet],
    x_label: str,
    share: bool = False,
    palette: Sequence[str] = PALETTE,
    text: str = "#333333",
    grid: str = "#dddddd",
) -> Figure | None:
    """Draw horizontal bars, grouped by name.

    Args:
        names: Names, from top to bottom.
        sets: The bars, one colour each.
        x_label: Name of the axis along the bars.
        share: Whether the values are shares, drawn from 0 to 100 %.
        palette: Colours, used in turn.
        text: Colour of the labels, of error bars and of grey bars.
        grid: Colour of the grid.

    Returns:
        The figure, or ``None`` if no value is finite.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
    if not any(math.isfinite(value) for bars in sets for value in bars.values):
        return None
    labels = [name if len(name) <= 22 else name[:21] + "…" for name in names]
    row = BAR * len(sets) + GAP
    height = TOP + BOTTOM + row * len(names)
    left = 14 + 6.4 * max(map(len, labels))
    with mpl.rc_context({"font.size": 12}):
        figure = mpl.figure.Figure((WIDTH / 72, height / 72))
        inner = (left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, row * len(names) / height)
        axes = figure.add_axes(inner)
        for place, bars in enumerate(sets):
            offset = (place - (len(sets) - 1) / 2) * BAR / row
            colour = text if bars.colour is None else palette[bars.colour % len(palette)]
            _draw(axes, bars, [i + offset for i in range(len(names))], BAR / row, colour, text)
        axes.set_yticks(range(len(names)), labels, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        if share:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
        axes.set_xlabel(x_label, color=text, parse_math=False)
        axes.set_axisbelow(True)
        plain(axes, "x", grid)
        axes.tick_params(labelcolor=text)
        figure.legend(loc="upper center", ncols=len(sets), frameon=False, labelcolor=text, borderaxespad=0.1)
    return figure


def _draw(axes: Axes, bars: BarSet, places: Sequence[float], thickness: float, colour: str, text: str) -> None:
    axes.barh(places, bars.values, thickness, color=colour, alpha=0.55, label=bars.name)
    if bars.low is None or bars.high is None:
        return
    for place, low, high in zip(places, bars.low, bars.high, strict=True):
        if math.isfinite(low) and math.isfinite(high):
            ends: Any = {"marker": "|", "markersize": 5, "markeredgewidth": 1.4}
            axes.plot([low, high], [place, place], color=text, linewidth=1.4, clip_on=False, **ends)
