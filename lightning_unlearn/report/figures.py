"""Curves, bars and heat maps of a report as matplotlib figures, and as inline SVG in the colours of its page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_unlearn.core.plots import (
    PALETTE,
    BarSet,
    Line,
    Point,
    bar_figure,
    line_figure,
    matrix_figure,
    scatter_figure,
)
from lightning_unlearn.report.sections import Bars, Curve, Heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "figure_of", "svg"]

COLOURS = len(PALETTE)  # the page's style sheet defines --set-0 to --set-7, and below --curve-text and --curve-grid
TEXT, GRID = "#0a0cfe", "#0a0cff"  # stand-ins, like #0a0c00 for --set-0: matplotlib knows no CSS variables


def figure_of(
    part: Curve | Bars | Heatmap, palette: Sequence[str] = PALETTE, text: str = "#333333", grid: str = "#dddddd"
) -> Figure | None:
    """Draw a curve, bars or a heat map; ``None`` if it has no finite value.

    Raises:
        ImportError: If matplotlib is missing.
    """
    if isinstance(part, Heatmap):
        values = [_values(row) for row in part.values]
        names = (part.rows, part.columns, part.row_label, part.column_label)
        empty = all(math.isnan(value) for row in values for value in row)
        share = part.unit == "share"
        return None if empty else matrix_figure(values, *names, part.limits, share, part.marked, text)
    if isinstance(part, Bars):
        sets = [
            BarSet(series.name, _values(series.values), colour, _bounds(series.low), _bounds(series.high))
            for series, colour in zip(part.series, _colours(part), strict=True)
        ]
        return bar_figure(part.names, sets, part.x_label, part.unit == "share", palette, text, grid)
    return _scatter(part, palette, text, grid) if part.plot == "scatter" else _lines(part, palette, text, grid)


def _lines(curve: Curve, palette: Sequence[str], text: str, grid: str) -> Figure | None:
    lines = [
        Line(series.name, series.x, _values(series.y), colour, _bounds(series.low), _bounds(series.high))
        for series, colour in zip(curve.series, _colours(curve), strict=True)
    ]
    return line_figure(lines, curve.x_label, curve.unit == "share", palette, text, grid, curve.unit != "dB")


def _scatter(curve: Curve, palette: Sequence[str], text: str, grid: str) -> Figure | None:
    points = [
        Point(series.name, x, y, 0 if series.role == "unlearned" else None)
        for series in curve.series
        for x, y in zip(series.x, series.y, strict=True)
        if series.role != "front" and y is not None
    ]
    fronts = [series for series in curve.series if series.role == "front"]
    front = [(x, y) for series in fronts for x, y in zip(series.x, series.y, strict=True) if y is not None]
    labels, share = (curve.x_label, curve.y_label), curve.unit == "share"
    return scatter_figure(points, *labels, front, share, palette, text, grid) if points else None


def svg(part: Curve | Bars, prefix: str) -> str:
    """Draw a curve or bars as an ``<svg>`` element, whose ids begin with a prefix; ``""`` if it has no finite value.

    Raises:
        ImportError: If matplotlib is missing.
    """
    import matplotlib

    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # the browser's font draws the text, not matplotlib's
        figure = figure_of(part, [f"#0a0c{i:02x}" for i in range(COLOURS)], TEXT, GRID)
        if figure is None:
            return ""
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue(), prefix)


def _colours(part: Curve | Bars) -> list[int | None]:
    """Models to compare with are grey; all others have a colour each."""
    colours: list[int | None] = []
    for series in part.series:
        grey = series.role in ("control", "front")
        colours.append(None if grey else sum(colour is not None for colour in colours))
    return colours


def _values(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _bounds(values: Sequence[float | None] | None) -> list[float] | None:
    return None if values is None else _values(values)


def _inline(svg: str, prefix: str) -> str:
    """Turn matplotlib's SVG file into an element for a page that has other such elements."""
    svg = svg[svg.index("<svg") :].replace(TEXT, "var(--curve-text)").replace(GRID, "var(--curve-grid)")
    svg = re.sub(r"#0a0c(0\d)", lambda match: f"var(--set-{int(match[1])})", svg)
    svg = re.sub(r' (xmlns|xmlns:xlink|width|height|version)="[^"]*"', "", svg, count=5)
    return re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", svg)
