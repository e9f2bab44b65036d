# python docs/figures/which_method.py
"""Figures of the page "Which method, and why", drawn from the tables of the other pages.

Each is a small SVG of one dot plot: a row for each method, a mark for each quantity. They follow the browser's light or
dark scheme, and are written beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from doc_tables import mean, table

WIDTH, LABELS, ROW, TOP, RIGHT = 440, 144, 19, 62, 20

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .muted, .tick { fill: #5f6368 } .tick { font-size: 11px }
.card { fill: #fff; stroke: #d5d8dc } .grid { stroke: #e3e5e8 } .reference { fill: #f1f3f5 }
.a { fill: #2b6cb0 } .b { fill: none; stroke: #c05621; stroke-width: 2 } .join { stroke: #aeb4bb }
@media (prefers-color-scheme: dark) {
text { fill: #e6e6e6 } .muted, .tick { fill: #a9afb6 } .card { fill: #1f2129; stroke: #3a3d47 }
.grid { stroke: #343741 } .reference { fill: #292c36 } .a { fill: #7fb2ea }
.b { stroke: #f0a06a } .join { stroke: #5b606a } }
"""


@dataclass
class Plot:
    """A dot plot of two quantities of each method."""

    name: str
    title: str
    marks: tuple[str, str]
    ends: tuple[str, str]
    ticks: list[float]
    rows: list[tuple[str, float, float]]
    references: tuple[str, ...] = ()
    logarithmic: bool = False


def plots() -> list[Plot]:
    """The figures."""
    facts = [
        (row[""], mean(row["heldout %"]), mean(row["general %"]))
        for row in table("facts", "| | lr | forget %")
        if row[""] != "before" and mean(row["forget %"]) <= 5
    ]
    tofu = [
        (row[""], mean(row["FQ"]), mean(row["retain ROUGE"]))
        for row in table("language_benchmarks", "| | lr | FQ")
        if row[""] != "retrained again"
    ]
    of_a_class, at_random = (
        {row[""]: row for row in table("compared", "| | UA | MIA", number) if row[""] != "retrained"}
        for number in (0, 1)
    )
    classes = [
        (name, mean(row["gap ± CI"]), mean(at_random[name]["gap ± CI"]))
        for name, row in of_a_class.items()
        if name in at_random and name != "SSD"  # measured in an earlier version
    ]
    erased = [
        (row[""], mean(row["ASR"]), mean(row["IRA"], row["CRA"]))
        for row in table("erased", "| | UA | IRA")
        if row[""] != "before"
    ]
    relearned = [
        (row[""], mean(row["area"]), mean(row["utility"]))
        for row in table("relearning_resistance", "| | setting | updates")
        if row[""].startswith("NPO") or row[""] in ("original", "retrained")
    ]
    names = {"ESD on the text encoder": "ESD, text encoder", "ESD on the text encoder, longer": "ESD, t. e., longer"}
    names |= {"AdvUnlearn on the text encoder": "AdvUnlearn, t. e.", "AdvUnlearn on the UNet": "AdvUnlearn, UNet"}
    percent = [0.0, 25, 50, 75, 100]
    return [
        Plot(
            "facts",
            "Facts of a chat model: right answers, %",
            ("other facts of the same kind", "general facts"),
            ("lost", "kept"),
            percent,
            _sorted(facts, lambda row: -row[1] - row[2]),
        ),
        Plot(
            "tofu",
            "Fictitious authors (TOFU), two seeds",
            ("forget quality", "ROUGE on rows to keep"),
            ("worse", "like retrained"),
            [0.0, 0.25, 0.5, 0.75, 1],
            _sorted(tofu, lambda row: -row[1]),
            ("original", "retrained"),
        ),
        Plot(
            "classifiers",
            "Classifiers: gap to a retrained model, points",
            ("one class", "a random tenth"),
            ("closer", "further"),
            [0.05, 0.5, 5, 50],
            _sorted(classes, lambda row: row[1] + row[2]),
            ("original",),
            logarithmic=True,
        ),
        Plot(
            "erased",
            "Concepts of a diffusion model, %",
            ("shown under attack", "other concepts drawn right"),
            ("", ""),
            percent,
            [(names.get(name, name), *values) for name, *values in _sorted(erased, lambda row: row[1] - row[2])],
        ),
        Plot(
            "relearned",
            "A class of MNIST, while ten rows are taught again, %",
            ("still forgotten", "accuracy on other classes"),
            ("", ""),
            percent,
            _sorted(relearned, lambda row: -row[1]),
            ("original", "retrained"),
        ),
    ]


def _sorted(
    rows: list[tuple[str, float, float]], key: Callable[[tuple[str, float, float]], float]
) -> list[tuple[str, float, float]]:
    return sorted(rows, key=lambda row: (key(row), row[0]))


def svg(plot: Plot) -> str:
    """A dot plot as SVG."""
    bottom = TOP + ROW * len(plot.rows)
    height = bottom + 38
    scale = math.log10 if plot.logarithmic else float
    low, high = scale(plot.ticks[0]), scale(plot.ticks[-1])

    def x(value: float) -> float:
        share = (scale(max(value, plot.ticks[0])) - low) / (high - low)
        return round(LABELS + min(share, 1) * (WIDTH - RIGHT - LABELS), 1)

    parts = [
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text x="14" y="24" font-weight="600">{escape(plot.title)}</text>',
        f'<circle class="a" cx="19" cy="40" r="4.5"/><text class="muted" x="29" y="44">{escape(plot.marks[0])}</text>',
        f'<circle class="b" cx="226" cy="40" r="4"/><text class="muted" x="236" y="44">{escape(plot.marks[1])}</text>',
    ]
    for tick in plot.ticks:
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP - 4}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    left, right = plot.ends
    parts.append(f'<text class="tick" x="{LABELS}" y="{bottom + 29}">{"← " + left if left else ""}</text>')
    end = f"{right} →" if right else ""
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{bottom + 29}" text-anchor="end">{end}</text>')
    for number, (name, first, second) in enumerate(plot.rows):
        y = TOP + ROW * number + ROW / 2
        if name in plot.references:
            parts.append(
                f'<rect class="reference" x="8" y="{y - ROW / 2}" width="{WIDTH - 16}" height="{ROW}" rx="3"/>'
            )
        parts.append(f'<text x="{LABELS - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="join" x1="{x(first)}" x2="{x(second)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="a" cx="{x(first)}" cy="{y}" r="4.5"/>')
        parts.append(f'<circle class="b" cx="{x(second)}" cy="{y}" r="4"/>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(plot.title)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    for plot in plots():
        Path(__file__).with_name(f"which_{plot.name}.svg").write_text(svg(plot), encoding="utf-8")
