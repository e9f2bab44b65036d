"""Heat maps of values over two axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_unlearn.core.plots.style import PALETTE, matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_figure", "heat_map_figure", "matrix_figure"]


def heat_map_figure(
    maps: Mapping[str, Sequence[Sequence[float]]],
    columns: Sequence[float],
    rows: Sequence[float],
    column_name: str,
    row_name: str,
    value_name: str,
) -> Figure:
    """Draw a value over two settings, one panel per map, on one logarithmic colour scale with the numbers in the cells.

    Args:
        maps: Values for each title, one list per row.
        columns: Values of the setting along a row.
        rows: Values of the setting from row to row.
        column_name: Name of the setting along a row.
        row_name: Name of the setting from row to row.
        value_name: Name of the value.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
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
        values: Shares in [0, 1], one per layer for each kind; NaN if a layer has no such weight.
        layers: Names of the layers, from left to right.
        kinds: Names of the kinds, from top to bottom.
        text: Colour of the labels.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
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


def matrix_figure(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    row_name: str,
    column_name: str,
    limits: tuple[float, float],
    share: bool = False,
    framed: Sequence[Sequence[int]] = (),
    text: str = "#333333",
) -> Figure:
    """Draw a matrix with named rows and columns, and with the numbers in the cells if there are few columns.

    Args:
        values: One list per row; NaN for an empty cell.
        rows: Names of the rows.
        columns: Names of the columns.
        row_name: Meaning of a row.
        column_name: Meaning of a column.
        limits: Values of the palest and of the strongest colour.
        share: Whether the values are shares, written as percentages.
        framed: Cells with a frame, as pairs of row and column.
        text: Colour of the labels.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    mpl = matplotlib()
    size = (1.6 + 0.36 * max(6, len(columns)), 1.4 + 0.26 * max(3, len(rows)))
    with mpl.rc_context({"font.size": 9}):
        figure = mpl.figure.Figure(size, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="Blues", aspect="auto", vmin=limits[0], vmax=limits[1])
        for i, row in enumerate(values if len(columns) <= 32 else ()):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    strong = value > (limits[0] + 2 * limits[1]) / 3
                    words, ink = f"{100 * value:.0f}" if share else f"{value:.3g}", "white" if strong else "black"
                    axes.text(j, i, words, ha="center", va="center", color=ink)
        for i, j in framed:
            axes.add_patch(mpl.patches.Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, ec=PALETTE[0], lw=1.8))
        axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.set_xlabel(column_name, color=text, parse_math=False)
        axes.set_ylabel(row_name, color=text, parse_math=False)
        axes.tick_params(length=0, labelcolor=text)
        axes.spines[:].set_visible(False)
        ticks = mpl.ticker.PercentFormatter(1, decimals=0) if share else None
        bar = figure.colorbar(image, ax=axes, format=ticks)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelcolor=text)
    return figure
