"""Tables of the documentation's pages, from which its figures are drawn."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]

Row = dict[str, str]


def table(page: str, columns: str, number: int = 0) -> list[Row]:
    """The rows of the table on a page whose header begins with these columns; the first column is ``""``."""
    lines = (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if _flat(line).startswith(_flat(columns))]
    if number >= len(starts):
        raise ValueError(f"docs/{page}.md has no table {number} that begins with {columns!r}.")
    header, rows = _cells(lines[starts[number]]), []
    for line in lines[starts[number] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(header, _cells(line), strict=True)))
    return rows


def _flat(line: str) -> str:
    return re.sub(r"\s", "", line)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def mean(*cells: str) -> float:
    """The mean of the numbers that begin each cell, or of those that ``/`` divides: runs of two seeds."""
    numbers = [float(re.match(r"[-\d.]+", part.strip())[0]) for cell in cells for part in cell.split("/")]
    return sum(numbers) / len(numbers)
