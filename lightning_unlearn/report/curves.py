"""Curves of a report as inline SVG in the colours of its page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence

from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.plots import PALETTE, curve_figure

__all__ = ["COLOURS", "draw"]

COLOURS = len(PALETTE)  # the page's style sheet defines --set-0 to --set-7, and below --curve-text and --curve-grid
TEXT, GRID = "#0a0cfe", "#0a0cff"  # stand-ins, like #0a0c00 for --set-0: matplotlib knows no CSS variables


def draw(curves: Sequence[Evaluation], names: Sequence[str], measure: str) -> str:
    """Draw ``<name>_<measure>`` by step for each set.

    Args:
        curves: The evaluations along the run.
        names: The sets, in the order of their colours.
        measure: ``"accuracy"`` (drawn from 0 to 100 %) or ``"nll"``.

    Returns:
        An ``<svg>`` element, or ``""`` if no set has a finite value.
    """
    import matplotlib

    figure = curve_figure(curves, names, measure, [f"#0a0c{i:02x}" for i in range(COLOURS)], TEXT, GRID)
    if figure is None:
        return ""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": measure}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # the browser's font draws the text, not matplotlib's
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue(), measure)


def _inline(svg: str, prefix: str) -> str:
    """Turn matplotlib's SVG file into an element for a page that has other such elements."""
    svg = svg[svg.index("<svg") :].replace(TEXT, "var(--curve-text)").replace(GRID, "var(--curve-grid)")
    svg = re.sub(r"#0a0c(0\d)", lambda match: f"var(--set-{int(match[1])})", svg)
    svg = re.sub(r' (xmlns|xmlns:xlink|width|height|version)="[^"]*"', "", svg, count=5)
    return re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", svg)
