"""Tables and figures of a benchmark."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_tables", "markdown", "rate", "save_figure", "spread", "write_record"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; rows that are too short end in empty cells.

    Example:
        >>> print(markdown(["", "UA"], [["retrained", "100.0 ± 0.0"], ["none"]]), end="")
        |  | UA |
        |---|---|
        | retrained | 100.0 ± 0.0 |
        | none |  |
    """
    lines = ["| " + " | ".join([*row, *[""] * (len(header) - len(row))]) + " |\n" for row in (header, *rows)]
    return lines[0] + "|" + "---|" * len(header) + "\n" + "".join(lines[1:])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation, with ``n - 1`` in the denominator; a single value has no deviation.

    Example:
        >>> spread([1, 2, 3]), spread([5], digits=0), spread([])
        ('2.0 ± 1.0', '5', '')
    """
    if not len(values):
        return ""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def rate(successes: int, count: int) -> str:
    """A rate in percent with its 95 % Wilson interval; empty if nothing was counted.

    Example:
        >>> rate(4, 20)
        '20 [8, 42]'
    """
    if not count:
        return ""
    share, low, high = wilson(successes, count)
    return f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def write_record(path: Path, record: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Write ``<path>.json`` and its table, ``<path>.md``, print the table, and return what the first file holds."""
    text = json.dumps(record, indent=2) + "\n"
    record = json.loads(text)
    write_text(f"{path}.json", text)
    write_text(f"{path}.md", table(record))
    print(table(record))
    return record


def save_figure(path: Path, draw: Callable[[], Figure]) -> None:
    """Write a figure if matplotlib is there, and warn if it is not."""
    try:
        draw().savefig(path)
    except ImportError as error:
        warnings.warn(f"{path} is not drawn. {error}", stacklevel=2)


def log_tables(
    project: str, config: dict[str, Any], columns: Sequence[str], tables: Mapping[str, Sequence[Sequence[str]]]
) -> None:
    """Log the rows of some tables to Weights & Biases, short ones filled with empty cells."""
    try:
        import wandb
    except ImportError:
        raise ImportError('wandb_project needs wandb: pip install "lightning-unlearn[wandb]"') from None
    with wandb.init(project=project, config=config) as run:
        for name, rows in tables.items():
            filled = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
            run.log({name: wandb.Table(columns=[*columns], data=filled)})
