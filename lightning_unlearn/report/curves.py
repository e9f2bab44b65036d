"""The report's curves: one line a question set, as inline SVG that follows the colours of the page around it."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from itertools import pairwise

from lightning_unlearn.evaluation import Evaluation

__all__ = ["COLOURS", "draw"]

COLOURS = 8  # the page's style sheet defines --set-0 to --set-7, and below --curve-text and --curve-grid
TEXT, GRID = "#0a0cfe", "#0a0cff"  # stand-ins, like #0a0c00 for --set-0: matplotlib knows no CSS variables
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))  # lines on top of each other stay visible
MARKERS = "osD^"
ROUND = [1, 2, 5, 10]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 250, 50, 44, 12  # in points, which are the SVG's pixels


def draw(curves: Sequence[Evaluation], names: Sequence[str], measure: str) -> str:
    """Draw ``<name>_<measure>`` by step for each question set.

    Args:
        curves: The evaluations along the run.
        names: The question sets, in the order of their colours.
        measure: ``"accuracy"`` (drawn from 0 to 100 %) or ``"nll"``.

    Returns:
        An ``<svg>`` element, or ``""`` if no set has a finite value.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    steps = [evaluation.step for evaluation in curves]
    lines = {}
    for i, name in enumerate(names):
        values = [evaluation.metrics.get(f"{name}_{measure}", math.nan) for evaluation in curves]
        if any(map(math.isfinite, values)):
            lines[i] = [value if math.isfinite(value) else math.nan for value in values]
    if not lines:
        return ""

    labels = {i: names[i] if len(names[i]) <= 16 else names[i][:15] + "…" for i in lines}
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": measure, "font.size": 12}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # the browser's font draws the text, not matplotlib's
        figure = Figure((WIDTH / 72, HEIGHT / 72))
        inner = HEIGHT - BOTTOM - TOP
        right = WIDTH - 24 - 7 * max(map(len, labels.values()))
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, (right - LEFT) / WIDTH, inner / HEIGHT))
        for i, values in lines.items():
            axes.plot(
                steps,
                values,
                color=f"#0a0c{i % COLOURS:02x}",
                linestyle=DASHES[i % len(DASHES)],
                marker=MARKERS[i % len(MARKERS)],
                linewidth=2.2,
                markersize=5,
                clip_on=False,
                zorder=3 + len(names) - i,
            )
        if measure == "accuracy":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
            axes.yaxis.set_major_formatter("{x:.5g}")
        if len(set(steps)) == 1:
            axes.set_xticks(steps[:1])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND, integer=True))
        axes.margins(x=0.02)
        axes.set_xlabel("training step", color=TEXT)
        axes.tick_params(length=0, pad=7, labelcolor=TEXT)
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.spines[:].set_visible(False)

        low, high = axes.get_ylim()
        ends = [([v for v in values if not math.isnan(v)][-1] - low) / (high - low) for values in lines.values()]
        for i, height in zip(lines, _apart(ends, 17 / inner), strict=True):
            axes.annotate(
                labels[i],
                (1, height),
                (10, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                color=f"#0a0c{i % COLOURS:02x}",
                weight="bold",
                verticalalignment="center",
                parse_math=False,
            )

        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue(), measure)


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


def _inline(svg: str, prefix: str) -> str:
    """Turn matplotlib's SVG file into an element for a page that has other such elements."""
    svg = svg[svg.index("<svg") :].replace(TEXT, "var(--curve-text)").replace(GRID, "var(--curve-grid)")
    svg = re.sub(r"#0a0c(0\d)", lambda match: f"var(--set-{int(match[1])})", svg)
    svg = re.sub(r' (xmlns|xmlns:xlink|width|height|version)="[^"]*"', "", svg, count=5)
    return re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", svg)
