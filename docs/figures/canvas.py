# python docs/figures/canvas.py
"""Heatmap of UnlearnCanvas on the miniature, drawn from the table of accuracies in docs/unlearncanvas.md.

There is a panel for each method, a row for each erased concept, and a column for each concept in the prompt; the erased
concept itself is framed. The SVG follows the browser's light or dark scheme and is written beside this file.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from doc_tables import Row, table

FIGURE = Path(__file__).with_name("canvas_heatmap.svg")
CELL, LABELS, TITLE, NAMES, GAP, ACROSS, HEAD = 17, 60, 18, 46, 14, 3, 46

STYLE = """
text { font: 11px system-ui, sans-serif; fill: #222 } .title { font-size: 12px; font-weight: 600 }
.muted { fill: #5f6368 } .card { fill: #fff; stroke: #d5d8dc } .none { fill: #f1f3f5 } .full { fill: #2b6cb0 }
.erased { fill: none; stroke: #c05621; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e6e6 } .muted { fill: #a9afb6 } .card { fill: #1f2129; stroke: #3a3d47 }
.none { fill: #292c36 } .full { fill: #7fb2ea } .erased { stroke: #f0a06a } }
"""


def accuracies() -> dict[str, list[Row]]:
    """The rows of each method in the table of accuracies."""
    methods: dict[str, list[Row]] = {}
    for row in table("unlearncanvas", "| method | erased | stripes"):
        methods.setdefault(row["method"], []).append(row)
    return methods


def svg(methods: dict[str, list[Row]]) -> str:
    """The heatmap as SVG."""
    concepts = list(next(iter(methods.values()))[0])[2:]
    rows = max(map(len, methods.values()))
    width_of, height_of = LABELS + CELL * len(concepts), TITLE + CELL * rows + NAMES
    down = -(-len(methods) // ACROSS)
    width = 2 * GAP + ACROSS * width_of + (ACROSS - 1) * GAP
    height = HEAD + down * height_of + (down - 1) * GAP // 2 + 8
    title = "Images judged to show what was asked for, after erasing one concept"
    parts = [
        f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="{GAP}" y="22">{title}</text>',
        *_key(width - GAP - 124, 12),
    ]
    for number, (method, erased) in enumerate(methods.items()):
        x = GAP + number % ACROSS * (width_of + GAP)
        y = HEAD + number // ACROSS * (height_of + GAP // 2)
        parts += [f'<g transform="translate({x} {y})">', *_panel(method, erased, concepts), "</g>"]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _panel(method: str, erased: list[Row], concepts: list[str]) -> list[str]:
    parts = [f'<text class="title" x="{LABELS}" y="12">{escape(method)}</text>']
    for line, row in enumerate(erased):
        y = TITLE + CELL * line
        parts.append(
            f'<text class="muted" x="{LABELS - 5}" y="{y + 12}" text-anchor="end">{escape(row["erased"])}</text>'
        )
        for column, concept in enumerate(concepts):
            x, share = LABELS + CELL * column, float(row[concept]) / 100
            parts += _square(x, y, share)
            if concept == row["erased"]:
                parts.append(f'<rect class="erased" x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" rx="2"/>')
    bottom = TITLE + CELL * len(erased) + 4
    for column, concept in enumerate(concepts):
        x = LABELS + CELL * column + CELL / 2 + 3
        place = f'transform="translate({x} {bottom}) rotate(-55)" text-anchor="end"'
        parts.append(f'<text class="muted" {place}>{escape(concept)}</text>')
    return parts


def _square(x: float, y: float, share: float) -> list[str]:
    size = f'width="{CELL - 1}" height="{CELL - 1}" rx="2"'
    return [
        f'<rect class="none" x="{x}" y="{y}" {size}/>',
        f'<rect class="full" x="{x}" y="{y}" {size} opacity="{share:.2f}"/>',
    ]


def _key(x: float, y: float) -> list[str]:
    parts = [f'<text class="muted" x="{x - 5}" y="{y + 11}" text-anchor="end">0 %</text>']
    for step in range(5):
        parts += _square(x + CELL * step, y - 2, step / 4)
    return [*parts, f'<text class="muted" x="{x + 5 * CELL + 4}" y="{y + 11}">100 %</text>']


if __name__ == "__main__":
    FIGURE.write_text(svg(accuracies()), encoding="utf-8")
