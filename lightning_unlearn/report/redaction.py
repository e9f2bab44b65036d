"""Redaction of reports: texts of rows to forget become a salted hash and a length."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_unlearn.core.evaluation import HIDDEN
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import ExampleRow, Examples, Images, Part, Table

__all__ = ["redacted", "shown_rows", "shows_rows"]


def redacted(report: UnlearningReport, salt: bytes | None = None) -> UnlearningReport:
    """The same report without the texts of rows to forget.

    Each text becomes ``(hidden) <hash>, <n> characters``. The hash is an HMAC-SHA256 with a random salt that is not
    stored: within the report, equal texts have equal hashes, so an answer that repeats the expected one is seen; but
    the text can't be found by trying, as it could from a plain hash of a short row. These texts are hidden: rows of
    `Examples` whose set has ``forget`` in its name or that are marked ``secret``, rows of any set with the same input,
    secret columns of a `Table`, and images of such rows. Prose, names and captions are not looked into.

    Args:
        report: The report.
        salt: Key of the hash. Default: random.

    Example:
        >>> from lightning_unlearn import Examples, Section
        >>> row = ExampleRow("forget", "Where does Ada live?", "In Wells Street.", ["In Wells Street."])
        >>> report = UnlearningReport(title="", sections=[Section("texts", "", [Examples("", ["before"], [row])])])
        >>> redacted(report).section("texts").parts[0].rows[0].input
        '(hidden) ..., 20 characters'
    """
    salt = salt or secrets.token_bytes(32)
    inputs = {row.input for part in report.parts() if isinstance(part, Examples) for row in part.rows if row.secret}

    def hide(text: str) -> str:
        if text.startswith(HIDDEN):
            return text
        digest = hmac.new(salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
        return f"{HIDDEN} {digest[:12]}, {len(text)} characters"

    return replace(
        report,
        sections=[
            replace(section, parts=[_hidden(part, inputs, hide) for part in section.parts])
            for section in report.sections
        ],
    )


def _hidden(part: Part, inputs: set[str], hide: Callable[[str], str]) -> Part:
    if isinstance(part, Examples):
        return replace(part, rows=[_row(row, hide) if row.input in inputs else row for row in part.rows])
    if isinstance(part, Table):
        columns = {part.columns.index(name) for name in part.secret}
        rows: list[list[Any]] = [
            [hide(cell) if i in columns and isinstance(cell, str) else cell for i, cell in enumerate(row)]
            for row in part.rows
        ]
        return replace(part, rows=rows)
    if isinstance(part, Images):
        return replace(
            part,
            rows=[
                replace(row, images=[""] * len(row.images), captions=list(map(hide, row.captions)))
                if row.secret
                else row
                for row in part.rows
            ],
        )
    return part


def _row(row: ExampleRow, hide: Callable[[str], str]) -> ExampleRow:
    outputs = [None if output is None else hide(output) for output in row.outputs]
    return replace(row, input=hide(row.input), expected=hide(row.expected), outputs=outputs, secret=True)


def shows_rows(report: UnlearningReport) -> bool:
    """Whether a report shows a text or an image of a row to forget."""
    return any(shown_rows(part) for part in report.parts())


def shown_rows(part: Part) -> str:
    """What a part shows of rows to forget, in words; ``""`` where it shows nothing."""
    if isinstance(part, Examples):
        shown = {row.input for row in part.rows if row.secret and not row.input.startswith(HIDDEN)}
        return f"questions and answers of {len(shown)} rows to forget" if shown else ""
    if isinstance(part, Table):
        columns = [part.columns.index(name) for name in part.secret]
        cells = (row[i] for row in part.rows for i in columns)
        told = any(isinstance(cell, str) and not cell.startswith(HIDDEN) for cell in cells)
        return f"texts of rows to forget under {', '.join(part.secret)}" if told else ""
    if isinstance(part, Images):
        drawn = sum(bool(image) for row in part.rows if row.secret for image in row.images)
        return f"{drawn} images of what was to be forgotten" if drawn else ""
    return ""
