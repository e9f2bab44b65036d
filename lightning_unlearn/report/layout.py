"""Layout of reports that Markdown and HTML share: words for numbers, and tables of measurements and curves."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import (
    Bars,
    BarSeries,
    Cell,
    Curve,
    Heatmap,
    Interval,
    Measurement,
    Part,
    Section,
)

__all__ = [
    "MISSING",
    "bar_table",
    "cell",
    "columns_of",
    "curve_table",
    "glance",
    "grouped",
    "heat_cell",
    "heat_groups",
    "interval",
    "number",
    "plain",
    "tally",
    "value_of",
]

MISSING = "–"
BYTES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def number(value: float | None, unit: str = "", n: int | None = None) -> str:
    """A number in the words of a page, with its unit.

    Example:
        >>> number(0.0682, "share"), number(9.0, "rows", 12), number(1234567.0), number(1.27e-5), number(None)
        ('6.8 %', '9 of 12', '1,234,567', '1.27e-05', '–')
        >>> number(3 * 2**29, "bytes"), number(98.25, "s"), number(-0.0004)
        ('1.50 GiB', '98.2 s', '−0.0004')
    """
    if value is None or not math.isfinite(value):
        return MISSING if value is None else "not finite"
    if unit == "share":
        return _minus(f"{100 * value:.1f} %")
    if unit == "rows":
        return f"{value:g} of {n}" if n is not None else f"{value:g}"
    if unit == "bytes":
        name, size = next(((name, size) for name, size in BYTES if value >= size), ("bytes", 1))
        return f"{value / size:.2f} {name}" if size > 1 else f"{value:.0f} bytes"
    text = _digits(value)
    return f"{text} {unit}" if unit else text


def _digits(value: float) -> str:
    """Three significant digits, and whole numbers in full."""
    if value == int(value) and abs(value) < 1e15:
        return _minus(f"{int(value):,}")
    if abs(value) >= 1000:
        return _minus(f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}")
    return _minus(f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}")


def _minus(text: str) -> str:
    return f"−{text[1:]}" if text.startswith("-") else text


def interval(of: Interval | None, unit: str = "") -> str:
    """An interval in words, such as ``"95 %: 0.31 to 0.42"``.

    Example:
        >>> interval(Interval(0.31, 0.42)), interval(Interval(None, 0.1, 0.99))
        ('95 %: 0.31 to 0.42', '99 %: at most 0.1')
    """
    if of is None:
        return ""
    low, high = (number(bound, "" if unit == "rows" else unit) for bound in (of.low, of.high))
    words = f"{low} to {high}" if of.low is not None and of.high is not None else ""
    words = words or (f"at most {high}" if of.low is None else f"at least {low}")
    return f"{100 * of.level:g} %: {words}"


def value_of(part: Measurement) -> str:
    """The value of a measurement in words."""
    return number(part.value, part.unit, part.n)


def cell(value: Cell) -> str:
    """A cell of a table in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)


def plain(value: Any) -> str:
    """A setting in words."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def grouped(section: Section) -> list[list[Measurement] | Part]:
    """The parts of a section, with neighbouring measurements as one list, which is one table."""
    groups: list[list[Measurement] | Part] = []
    for part in section.parts:
        if not isinstance(part, Measurement):
            groups.append(part)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


COLUMNS = {
    "outcome": "outcome",
    "original": "before",
    "value": "after",
    "control": "control",
    "chance": "chance",
    "n": "n",
    "better": "better",
}


def columns_of(parts: Sequence[Measurement]) -> dict[str, str]:
    """The columns of a table of measurements that have something to say, and their headings."""
    used: dict[str, bool] = {
        "outcome": any(part.outcome != "info" for part in parts),
        "value": True,
        "n": any(part.n is not None and part.unit != "rows" for part in parts),
        "better": any(part.better for part in parts),
        **{
            name: any(getattr(part.anchors, name) is not None for part in parts)
            for name in ("original", "control", "chance")
        },
    }
    return {name: heading for name, heading in COLUMNS.items() if used[name]}


def curve_table(curve: Curve) -> tuple[list[str], list[list[Cell]]]:
    """The numbers of a curve: a column for each line, or a row for each point of a scatter plot."""
    if curve.plot == "scatter":
        points = [series for series in curve.series if series.role != "front"]
        rows: list[list[Cell]] = [
            [s.name, *(number(value, curve.unit) if curve.unit else value for value in place)]
            for s in points
            for place in zip(s.x, s.y, strict=True)
        ]
        return ["", curve.x_label, curve.y_label], rows
    values = [dict(zip(series.x, series.y, strict=True)) for series in curve.series]
    places = sorted({x for series in curve.series for x in series.x})
    drawn: list[list[Cell]] = [[x, *(number(of.get(x), curve.unit) for of in values)] for x in places]
    return [curve.x_label, *(series.name for series in curve.series)], drawn


def bar_table(bars: Bars) -> tuple[list[str], list[list[Cell]]]:
    """The numbers of bars with their bounds: a row for each name, a column for each series."""
    rows: list[list[Cell]] = [
        [name, *(_with_bounds(series, place, bars.unit) for series in bars.series)]
        for place, name in enumerate(bars.names)
    ]
    return ["", *(series.name for series in bars.series)], rows


def _with_bounds(series: BarSeries, place: int, unit: str) -> str:
    value = number(series.values[place], unit)
    if series.low is None or series.high is None or series.low[place] is None or series.high[place] is None:
        return value
    return f"{value} ({number(series.low[place], unit)} to {number(series.high[place], unit)})"


def heat_cell(value: float | None, unit: str = "") -> str:
    """A cell of a heat map; shares are whole percentages without their sign.

    Example:
        >>> heat_cell(0.876, "share"), heat_cell(1.5), heat_cell(None)
        ('88', '1.5', '–')
    """
    return number(value) if value is None or unit != "share" else f"{100 * value:.0f}"


def heat_groups(part: Heatmap) -> list[tuple[str, int]]:
    """The groups of the columns, each with the number of its neighbouring columns."""
    return [(name, sum(1 for _ in columns)) for name, columns in groupby(part.groups)]


def tally(section: Section) -> dict[str, int]:
    """How many measurements of a section passed, failed and were not run."""
    found = Counter(part.outcome for part in section.measurements)
    return {outcome: found[outcome] for outcome in ("fail", "pass", "not run") if found[outcome]}


def glance(report: UnlearningReport) -> list[tuple[Section, dict[str, int]]]:
    """The sections with their tallies; none where the report judges nothing."""
    tallies = [(section, tally(section)) for section in report.sections]
    return tallies if any(counts for _, counts in tallies) else []
