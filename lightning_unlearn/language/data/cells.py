"""Checks of cells in tables of questions and texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.sources import is_missing, text_cell

if TYPE_CHECKING:
    from lightning_unlearn.language.data.columns import Columns

__all__ = ["row_name", "text_rows"]

_WRITTEN_MISSING = {"nan", "none", "null", "<na>", "nat", "#n/a", "#name?", "#ref!", "#value!", "#div/0!"}


def row_name(name: str, number: int, source: Any = None) -> str:
    """Row and file, as messages call them."""
    return f"Row {number} of the {name} set" + (f" ({source})" if isinstance(source, (str, Path)) else "")


def text_rows(name: str, rows: Sequence[dict[str, Any]], columns: Columns, source: Any = None) -> list[dict[str, Any]]:
    """Rows with a text in every required column, without empty cells.

    A row with a text but neither question nor answer is a plain text. A row with none of the columns is left as it is.

    Args:
        name: Name of the set.
        rows: The rows as their source has them.
        columns: Names of the columns.
        source: Where the rows are from, for messages.

    Raises:
        ValueError: If a question, answer or text is missing, or a cell is no text.
    """
    texts = []
    doubtful: list[str] = []
    for number, row in enumerate(rows):
        where = row_name(name, number, source)
        row = {column: value for column, value in row.items() if column not in _optional(columns) or _holds(value)}
        if columns.messages in row and is_missing(row.get(columns.question)):
            others = (columns.question, columns.answer, columns.text)
            row = {column: value for column, value in row.items() if column not in others}
        if all(column in row for column in (columns.question, columns.answer)):
            row = _question_or_text(row, columns, where)
        elif columns.text in row:
            _filled(row, columns.text, where, "supervised token")
        for column in (columns.question, columns.answer, columns.text, columns.target, columns.system):
            if column in row and not is_missing(row[column]):
                row[column] = text_cell(row[column], where, column)
                if row[column].strip().lower() in _WRITTEN_MISSING:
                    doubtful.append(f"{row[column]!r} in {column!r} of row {number}")
        if columns.accept in row and not isinstance(row[columns.accept], str):
            row[columns.accept] = _text_list(row[columns.accept], where, columns.accept)
        texts.append(row)
    if doubtful:
        rank_zero_warn(
            f"{len(doubtful)} cells of the {name} set look like missing values that were written as text, such as "
            f"{doubtful[0]}. They are used as they are; remove such rows if nothing is meant."
        )
    return texts


def _question_or_text(row: dict[str, Any], columns: Columns, where: str) -> dict[str, Any]:
    pair = (columns.question, columns.answer)
    if all(is_missing(row[column]) for column in pair) and not is_missing(row.get(columns.text)):
        return {column: value for column, value in row.items() if column not in pair}
    _filled(row, columns.question, where, "question")
    _filled(row, columns.answer, where, "supervised token")
    return row


def _filled(row: dict[str, Any], column: str, where: str, lacks: str) -> None:
    if is_missing(row[column]):
        raise ValueError(f"{where} has no {lacks}: its {column!r} is {row[column]!r}. Fill it in, or remove the row.")


def _text_list(values: Any, where: str, column: str) -> list[str]:
    if isinstance(values, (dict, bytes)) or not isinstance(values, Iterable):
        values = [values]
    return [text_cell(value, where, column) for value in values if not is_missing(value)]


def _optional(columns: Columns) -> tuple[str, ...]:
    return columns.target, columns.accept, columns.alternate, columns.system, columns.messages


def _holds(value: Any) -> bool:
    return not is_missing(value) and not (hasattr(value, "__len__") and len(value) == 0)
