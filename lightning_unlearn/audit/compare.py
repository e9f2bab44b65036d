"""Comparison of reports and of published result files: a leaderboard, and forgetting against utility."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_unlearn.audit.scores import KNOWN, Scores, read_scores, scores_of
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.files import write_text
from lightning_unlearn.report.layout import MISSING
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import Cell, Curve, Section, Series, Table, Text
from lightning_unlearn.report.write import write_report

__all__ = ["compare_reports", "write_comparison"]

FORGET = {
    "forget quality": "higher",
    "extraction strength (strict)": "lower",
    "extraction strength (floored)": "lower",
    "forget ROUGE-L (recall)": "lower",
    "forget probability": "lower",
    "KnowMem, forget": "lower",
    "VerbMem, forget": "lower",
    "WMDP-Bio accuracy": "lower",
    "WMDP-Cyber accuracy": "lower",
    "WMDP accuracy": "lower",
}
"""Metrics of the horizontal axis by preference, and which direction is better."""
UTILITY = dict.fromkeys(
    (
        *("model utility", "retain ROUGE-L (recall)", "retain probability", "KnowMem, retain"),
        "MMLU accuracy",
        *("retain (right answers)", "retain (extraction strength)"),  # of our audits
    ),
    "higher",
)
"""The same of the vertical axis."""
NOT_THERE = "not in this file"
AUXILIARY = re.compile(r".*_PERT_Prob|.*_PARA_Prob|ra_Q_A_Prob|wf_Q_A_Prob|.*_stderr(,.*)?|mmlu_.*/.*")
"""Metrics that others are computed from, and standard errors; they are shown where they are asked for."""
FLOOR = 1e-300  # of p-values on a logarithmic axis


def compare_reports(
    reports: Mapping[str, Any] | Sequence[Any],
    columns: Sequence[str] | None = None,
    forget: str | None = None,
    utility: str | None = None,
) -> UnlearningReport:
    """Compare models by their reports and by published result files of others.

    Metrics of two files stand in one column only where name and variant are the same: strict and floored extraction
    strength are two columns. An axis with a p-value is its logarithm.

    Args:
        reports: Paths of result files, see `read_scores`, or `UnlearningReport`s; a mapping, or pairs of a name and one
            of them, give them names.
        columns: Metrics to show, by name and variant. Default: those that at least two files name.
        forget: Metric of the horizontal axis, and after a colon the better direction where the files do not say:
            ``"my metric:lower"``. Default: forget quality, extraction strength, ..., whichever most files have.
        utility: Metric of the vertical axis, likewise.

    Returns:
        A report with the sections ``leaderboard``, ``trade-off`` and ``sources``. Missing cells have the reason in the
        note of the table.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is of another kind, two models have one name, or no file has a metric that was asked for.
    """
    scores = _all_scores(reports)
    shared = list(columns) if columns is not None else _shared(scores)
    there = dict.fromkeys(name for row in scores for name in (*row.values, *row.missing))
    unknown = [name for name in shared if name not in there]
    if unknown:
        raise ValueError(f"No file has the metrics {unknown}. They have {list(there)}.")
    axes = _axis(scores, forget, FORGET), _axis(scores, utility, UTILITY)
    table = _leaderboard(scores, shared)
    return UnlearningReport(
        title=f"{len(scores)} model{'' if len(scores) == 1 else 's'} compared",
        sections=[
            Section("leaderboard", "Leaderboard", [table]),
            Section("trade-off", "Forgetting against utility", [_trade_off(scores, *axes)]),
            Section("sources", "Sources", [_sources(scores, reports)]),
        ],
        limits=[
            "Files of others hold what their authors measured: other prompts, templates, precisions and rows change "
            "the numbers, so columns compare only where these agree.",
        ],
    )


def write_comparison(comparison: UnlearningReport, folder: str | os.PathLike[str]) -> None:
    """Write ``leaderboard.csv`` beside the files of [`write_report`][lightning_unlearn.write_report].

    An empty cell of the CSV has its reason in the last column.

    Raises:
        ImportError: If jinja2 is missing; the other files are written even then.
    """
    table = comparison.section("leaderboard").parts[0]
    assert isinstance(table, Table)
    marks = _reasons(table.note)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*table.columns, "missing"])
    for row in table.rows:
        gone = {i: marks[cell] for i, cell in enumerate(row) if isinstance(cell, str) and cell in marks}
        cells = ["" if i in gone or cell is None else cell for i, cell in enumerate(row)]
        writer.writerow([*cells, "; ".join(f"{table.columns[i]}: {reason}" for i, reason in gone.items())])
    write_text(Path(folder, "leaderboard.csv"), file.getvalue())
    write_report(comparison, folder)


def _all_scores(reports: Mapping[str, Any] | Sequence[Any]) -> list[Scores]:
    named = _named(reports)
    if not named:
        raise ValueError("There is nothing to compare. Give at least one report or result file.")
    scores = [
        scores_of(report, name or report.title) if isinstance(report, UnlearningReport) else read_scores(report, name)
        for name, report in named
    ]
    names = [row.name for row in scores]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Several files have the name {twice}. Give them names, such as {twice[0]}-2=path.")
    return scores


def _named(reports: Mapping[str, Any] | Sequence[Any]) -> list[tuple[str, Any]]:
    if isinstance(reports, Mapping):
        return list(reports.items())
    return [report if isinstance(report, tuple) else ("", report) for report in reports]


def _shared(scores: Sequence[Scores]) -> list[str]:
    """Metrics that at least two files have, those of the field first."""
    order = {name: place for place, (name, _) in enumerate(KNOWN.values())}
    names = dict.fromkeys(name for row in scores for name in row.values if not AUXILIARY.fullmatch(name))
    told = {name: sum(name in row.values or name in row.missing for row in scores) for name in names}
    shared = [name for name in names if told[name] >= min(2, len(scores))]
    return sorted(shared, key=lambda name: order.get(name, len(order)))


def _leaderboard(scores: Sequence[Scores], columns: Sequence[str]) -> Table:
    reasons: dict[str, str] = {}
    judged = any(row.verdict for row in scores)
    rows: list[list[Cell]] = []
    for row in scores:
        cells: list[Cell] = [row.name]
        cells += [row.verdict or _mark(reasons, "no verdict in this file")] if judged else []
        for name in columns:
            value = row.values.get(name)
            cells.append(_mark(reasons, row.missing.get(name, NOT_THERE)) if value is None else value)
        rows.append(cells)
    better = {name: direction for row in scores for name, direction in row.better.items()}
    arrows = {"higher": " ↑", "lower": " ↓"}
    heads = [name + arrows.get(better.get(name, ""), "") for name in columns]
    note = "; ".join(f"{mark} {reason}" for reason, mark in reasons.items())
    return Table("Scores", ["model", *(["verdict"] if judged else []), *heads], rows, note)


def _mark(reasons: dict[str, str], reason: str) -> str:
    """What stands in a missing cell: a dash with the number of its reason."""
    number = str(len(reasons) + 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return reasons.setdefault(reason.replace("; ", ", "), f"{MISSING}{number}")


def _reasons(note: str) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in note.split("; ")) if note else {}


def _axis(scores: Sequence[Scores], asked: str | None, preferred: Mapping[str, str]) -> tuple[str, str] | None:
    """Metric and better direction of an axis; ``None`` if no file has one of the preferred metrics."""
    if asked is None:
        counts = {name: sum(name in row.values for row in scores) for name in preferred}
        name = max(preferred, key=lambda name: counts[name])  # the first of those that most files have
        return (name, preferred[name]) if counts[name] else None
    name, _, direction = asked.rpartition(":") if asked.endswith((":lower", ":higher")) else (asked, "", "")
    there = dict.fromkeys(known for row in scores for known in row.values)
    if name not in there:
        raise ValueError(f"No file has a number for {name!r}. They have {list(there)}.")
    direction = direction or next((row.better[name] for row in scores if name in row.better), "")
    one_of(
        f"The better direction of {name!r}",
        direction,
        ("lower", "higher"),
        f"the files do not say it: write {name + ':lower'!r} or {name + ':higher'!r}",
    )
    return name, direction


def _trade_off(
    scores: Sequence[Scores], forget: tuple[str, str] | None, utility: tuple[str, str] | None
) -> Curve | Text:
    if forget is None or utility is None:
        wanted = list(FORGET if forget is None else UTILITY)
        return Text(f"Not drawn: no file has {', '.join(wanted[:-1])} or {wanted[-1]}. Name the axes to draw others.")
    both = [row for row in scores if forget[0] in row.values and utility[0] in row.values]
    if not both:
        return Text(f"Not drawn: no file has both {forget[0]} and {utility[0]}.")
    points = {row.name: (_place(forget[0], row), _place(utility[0], row)) for row in both}
    front = pareto(points, forget[1], utility[1])
    shown = [Series(row.name, [points[row.name][0]], [points[row.name][1]], role=_role(row)) for row in both]
    line = sorted(points[name] for name in front)
    shown.append(Series("Pareto front", [x for x, _ in line], [y for _, y in line], role="front"))
    left = [row.name for row in scores if row not in both]
    note = f"On the front, no other model is better on one axis and no worse on the other: {', '.join(front)}."
    note += f" Not drawn, as a number is missing: {', '.join(left)}." if left else ""
    x_label, y_label = (f"{_label(name)}, {direction} is better" for name, direction in (forget, utility))
    return Curve(f"{forget[0]} against {utility[0]}", x_label, y_label, shown, "scatter", note=note)


def pareto(points: Mapping[str, tuple[float, float]], x_better: str, y_better: str) -> list[str]:
    """The points that no other one is at least as good as on both axes and better on one.

    Example:
        >>> pareto({"a": (0.1, 0.5), "b": (0.3, 0.6), "c": (0.4, 0.4)}, "lower", "higher")
        ['a', 'b']
    """
    signs = [1 if better == "higher" else -1 for better in (x_better, y_better)]
    good = {name: (signs[0] * x, signs[1] * y) for name, (x, y) in points.items()}
    return [
        name
        for name, (x, y) in good.items()
        if not any(u >= x and v >= y and (u, v) != (x, y) for u, v in good.values())
    ]


def _place(metric: str, row: Scores) -> float:
    value = row.values[metric]
    return math.log10(max(value, FLOOR)) if metric == "forget quality" else value


def _label(metric: str) -> str:
    return f"log10 of {metric}" if metric == "forget quality" else metric


def _role(row: Scores) -> Any:
    return "unlearned" if row.source == "report" else "other"


def _sources(scores: Sequence[Scores], reports: Mapping[str, Any] | Sequence[Any]) -> Table:
    places = ["" if isinstance(report, UnlearningReport) else str(report) for _, report in _named(reports)]
    rows: list[list[Cell]] = [
        [row.name, row.source, len(row.values), place] for row, place in zip(scores, places, strict=True)
    ]
    return Table("Files", ["model", "kind", "metrics", "file"], rows)
