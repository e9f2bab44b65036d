"""Markdown of a report, for pull requests, tickets and terminals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_unlearn.report.layout import (
    bar_table,
    cell,
    columns_of,
    curve_table,
    glance,
    grouped,
    heat_cell,
    interval,
    number,
    plain,
    value_of,
)
from lightning_unlearn.report.model import SCHEMA, UnlearningReport
from lightning_unlearn.report.redaction import shows_rows
from lightning_unlearn.report.sections import (
    Bars,
    Curve,
    Examples,
    Heatmap,
    Images,
    Measurement,
    Part,
    Section,
    Table,
    Text,
)

__all__ = ["markdown_table", "render_markdown"]

WIDE = 24  # columns of a heat map that Markdown still shows
MARKS = {True: "✓ ", False: "✗ ", None: ""}


def render_markdown(report: UnlearningReport) -> str:
    """The report as Markdown: curves, bars and heat maps become tables, and images a line that counts them.

    The last line is a comment that says whether texts of rows to forget are shown; ``lightning-unlearn doctor`` reads
    it.
    """
    blocks = [f"# {escape(report.title)}"]
    if report.headline:
        blocks += [f"**Verdict: {escape(report.headline.word)}.** {escape(report.headline.summary)}"]
        blocks += [_items(report.headline.reasons)]
        blocks += ["What to do:", _items(report.headline.advice)] if report.headline.advice else []
    blocks.append(_pairs(report.subject))
    counts = [
        [section.title, *(str(tally.get(outcome, "")) for outcome in ("pass", "fail", "not run"))]
        for section, tally in glance(report)
    ]
    if counts:
        blocks += ["## At a glance", markdown_table(["section", "pass", "fail", "not run"], counts)]
    for section in report.sections:
        blocks += _section(section)
    blocks += ["## Limits", _items(report.limits)] if report.limits else []
    blocks += ["## Provenance", _pairs({**report.provenance, **report.environment, "created": report.created})]
    if report.terms:
        blocks += ["## Terms", _items([f"{name}: {meaning}" for name, meaning in report.terms.items()])]
    shown = "shown" if shows_rows(report) else "not shown"
    blocks.append(f"<!-- {SCHEMA}; rows to forget: {shown} -->")
    return "\n\n".join(block for block in blocks if block) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; what has a meaning in Markdown is escaped."""
    lines = [[escape(text) for text in line] for line in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """A text as Markdown shows it in one line, tags and all."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split("\n")).strip())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _items(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _pairs(values: Mapping[str, Any]) -> str:
    flat: list[list[str]] = []
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat += [[f"{name} {key}".strip(), plain(item)] for key, item in inner]
    return markdown_table(["", ""], flat) if flat else ""


def _section(section: Section) -> list[str]:
    blocks = [f"## {escape(section.title)}", escape(section.note)]
    for group in grouped(section):
        blocks += [_measurements(group)] if isinstance(group, list) else _part(group)
    return blocks


def _measurements(parts: Sequence[Measurement]) -> str:
    columns = columns_of(parts)
    rows = []
    for part in parts:
        anchors = {name: number(getattr(part.anchors, name), part.unit, part.n) for name in ("original", "control")}
        cells = {
            "outcome": "" if part.outcome == "info" else part.outcome,
            "value": " ".join(filter(None, (value_of(part), f"({interval(part.interval, part.unit)})")))
            if part.interval
            else value_of(part),
            **anchors,
            "chance": number(part.anchors.chance, part.unit, part.n),
            "n": "" if part.n is None else str(part.n),
            "better": part.better,
        }
        rows.append([part.key, *(cells[name] for name in columns), part.reason])
    reasons = any(part.reason for part in parts)
    headings = ["", *columns.values(), *(["reason"] if reasons else [])]
    return markdown_table(headings, [row if reasons else row[:-1] for row in rows])


def _part(part: Part) -> list[str]:
    if isinstance(part, Text):
        title = [f"### {escape(part.title)}"] if part.title else []
        return [*title, *map(escape, part.text.split("\n\n")), _items(part.items)]
    heading = [f"### {escape(part.title)}"] if not isinstance(part, Measurement) and part.title else []
    note = [] if isinstance(part, Measurement) else [escape(part.note)]
    if isinstance(part, Table):
        rows = [[cell(value) for value in row] for row in part.rows]
        return [*heading, markdown_table(part.columns or ["", ""], rows), *note]
    if isinstance(part, Heatmap):
        return [*heading, _heatmap(part), *note]
    if isinstance(part, (Curve, Bars)):
        columns, values = curve_table(part) if isinstance(part, Curve) else bar_table(part)
        return [*heading, markdown_table(columns, [[cell(value) for value in row] for row in values]), *note]
    if isinstance(part, Examples):
        return [*heading, _examples(part), *note]
    if isinstance(part, Images):
        shown = sum(bool(image) for row in part.rows for image in row.images)
        return [*heading, f"{shown} images; the HTML page shows them.", *note]
    return []


def _heatmap(part: Heatmap) -> str:
    if len(part.columns) > WIDE:
        return f"{len(part.rows)} rows of {len(part.columns)} values; the HTML page shows them."
    framed = {(row, column) for row, column in part.marked}
    rows = [
        [name, *(heat_cell(value, part.unit) + "*" * ((i, j) in framed) for j, value in enumerate(part.values[i]))]
        for i, name in enumerate(part.rows)
    ]
    unit = ", in %" if part.unit == "share" else ""
    corner = f"{part.row_label} ↓, {part.column_label} →{unit}"
    legend = f"\n\n{escape(f'* {part.mark_means}')}" if framed else ""
    return markdown_table([corner, *part.columns], rows) + legend


def _examples(part: Examples) -> str:
    rows = []
    for row in part.rows:
        outputs = ["not evaluated" if text is None else text or "no output" for text in row.outputs]
        marked = [MARKS[hit] + output for hit, output in zip(row.hits, outputs, strict=True)]
        rows.append([row.set, row.input, row.expected, *marked])
    return markdown_table(["set", "input", "expected", *part.columns], rows)
