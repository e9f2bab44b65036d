"""Line figures with several panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_unlearn.core.plots.lines import Line
from lightning_unlearn.core.plots.style import DASHES, MARKERS, PALETTE, matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "panel_figure"]


class Panel(NamedTuple):
    """One panel of a figure.

    Args:
        lines: Lines of the panel; those with ``low`` and ``high`` have a band.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
    """

    lines: Sequence[Line]
    x_label: str
    y_label: str


def panel_figure(
    panels: Sequence[Sequence[Panel]], palette: Sequence[str] = PALETTE, text: str = "#333333", grid: str = "#dddddd"
) -> Figure:
    """Draw rows of panels; the panels of a row share their vertical axis, and one legend names all lines.

    Args:
        panels: Rows of panels, the same number in each.
        palette: Colours, used in turn.
        text: Colour of the labels.
        grid: Colour of the grid.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If rows have different numbers of panels, or there is none.
    """
    widths = {len(row) for row in panels}
    if len(widths) != 1 or not min(widths):
        raise ValueError(
            f"Each row must have as many panels, and one at least, but they have {list(map(len, panels))}."
        )
    mpl, width = matplotlib(), widths.pop()
    with mpl.rc_context({"font.size": 10}):
        figure = mpl.figure.Figure((0.6 + 2.6 * width, 0.6 + 2.1 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), width, squeeze=False, sharey="row")
        for axes_row, row in zip(all_axes, panels, strict=True):
            for place, (axes, panel) in enumerate(zip(axes_row, row, strict=True)):
                _draw(axes, panel, palette, text)
                plain(axes, "y", grid)
                axes.tick_params(labelcolor=text)
                axes.set_xlabel(panel.x_label, color=text, parse_math=False)
                if not place:
                    axes.set_ylabel(panel.y_label, color=text, parse_math=False)
        handles = {
            label: handle
            for axes in all_axes.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if len(handles) > 1:
            figure.legend(
                [*handles.values()], [*handles], loc="outside lower center", ncols=min(5, len(handles)), frameon=False
            )
    return figure


def _draw(axes: Axes, panel: Panel, palette: Sequence[str], text: str) -> None:
    for line in panel.lines:
        i = line.colour
        colour = text if i is None else palette[i % len(palette)]
        axes.plot(
            line.x,
            _gaps(line.y),
            color=colour,
            linestyle=(0, (1.2, 1.4)) if i is None else DASHES[i % len(DASHES)],
            marker="." if i is None else MARKERS[i % len(MARKERS)],
            label=line.name,
            linewidth=1.8,
            markersize=4,
        )
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, _gaps(line.low), _gaps(line.high), color=colour, alpha=0.18, linewidth=0)


def _gaps(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]
