"""One self-contained HTML page for a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_unlearn.report.figures import svg
from lightning_unlearn.report.layout import (
    MISSING,
    bar_table,
    cell,
    columns_of,
    curve_table,
    glance,
    grouped,
    heat_cell,
    heat_groups,
    interval,
    number,
    plain,
    value_of,
)
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.redaction import shows_rows
from lightning_unlearn.report.sections import KINDS, Bars, Curve, Examples, Measurement, Section, Table

__all__ = ["render_html", "slug"]


def render_html(report: UnlearningReport) -> str:
    """The page: the verdict, the evidence, the limits. It loads nothing from elsewhere.

    Curves and bars are drawn by matplotlib; where it is not installed, the page has their numbers.

    Raises:
        ImportError: If jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError('report.html needs jinja2: pip install "lightning-unlearn[report]"') from error

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "plain": plain,
        "interval": interval,
        "value_of": value_of,
        "cell": cell,
        "heat_cell": heat_cell,
        "heat_groups": heat_groups,
        "slug": slug,
        "hits": _hits,
        "numeric": _numeric,
    }
    drawn = find_spec("matplotlib") is not None
    return environment.get_template("report.html.jinja").render(
        report=report,
        style=Path(__file__).with_name("report.css").read_text(encoding="utf-8"),
        shown=shows_rows(report),
        overview=glance(report),
        provenance={**report.provenance, **report.environment, "created": report.created},
        runs=_runs,
        columns_of=columns_of,
        curve_table=curve_table,
        bar_table=bar_table,
        draw=svg if drawn else _nothing,
    )


def _runs(section: Section) -> list[tuple[str, list[Any]]]:
    """The groups of a section, with neighbours of one kind together: curves, bars and images stand side by side."""
    runs: list[tuple[str, list[Any]]] = []
    for group in grouped(section):
        kind = "measurements" if isinstance(group, list) else _kind(group)
        if runs and runs[-1][0] == kind:
            runs[-1][1].append(group)
        else:
            runs.append((kind, [group]))
    return runs


def _kind(part: Any) -> str:
    return next(name for name, cls in KINDS.items() if isinstance(part, cls) and cls is not Measurement)


def slug(text: str) -> str:
    """A text as a part of an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _hits(part: Examples, column: int) -> str:
    """How many outputs of a column are hits, such as ``"9 of 12"``."""
    hits: Sequence[bool | None] = [row.hits[column] for row in part.rows if row.hits[column] is not None]
    return f"{sum(map(bool, hits))} of {len(hits)}" if hits else ""


def _numeric(part: Table, column: int) -> bool:
    """Whether a column has numbers and no words, but dashes for missing ones."""
    values = [row[column] for row in part.rows]
    words = any(isinstance(value, str) and not value.startswith(MISSING) for value in values)
    return not words and any(isinstance(value, (int, float)) for value in values)


def _nothing(part: Curve | Bars, prefix: str) -> str:
    return ""
