"""Tables of a request about a language model: which file is which set, and how its rows read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.core.tables import TABLE_ENDINGS
from lightning_unlearn.language.data.columns import Columns

__all__ = ["AUTO", "absolute", "check_columns", "columns_of", "find_tables", "read_tables"]

AUTO = "auto"
_AUDIT_ALONE = ("neutral", "paraphrases")
_SETS = ("forget", "retain", "never_seen", "heldout", "general", *_AUDIT_ALONE)
_EXAMPLE = 4  # columns
_ASKED = ("question", "prompt", "instruction", "input", "query")
_SAID = ("answer", "completion", "response", "output", "reply")


def find_tables(
    forget: str, retain: str | None, never_seen: str | None, heldout: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """The sources of the sets that the run reads, and of those that the audit alone reads.

    Args:
        forget: Rows, or a folder with tables that are named for the sets.
        retain: Rows to keep, or ``"auto"``; by default the folder's, else ``"auto"``.
        never_seen: Rows that the model has never seen.
        heldout: Rows that are measured and not trained on.

    Raises:
        FileNotFoundError: If a folder has no table ``forget``.
    """
    found = _in_folder(Path(forget).expanduser()) if _is_tables(forget) else {"forget": forget}
    given = {"retain": retain, "never_seen": never_seen, "heldout": heldout}
    found |= {name: source for name, source in given.items() if source is not None}
    found.setdefault("retain", AUTO)
    places = {name: source if source == AUTO else absolute(source) for name, source in found.items()}
    audit = {name: places.pop(name) for name in _AUDIT_ALONE if name in places}
    return places, audit


def read_tables(sources: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each set, without those of ``"auto"``, which are not written yet.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a set is empty, or a file can't be read.
    """
    tables = {name: load_rows(source) for name, source in sources.items() if source != AUTO}
    for name, rows in tables.items():
        if not rows:
            raise ValueError(f"The {name} rows ({sources[name]}) are empty. Give at least one row.")
    return tables


def columns_of(columns: Columns | None, template: str | None) -> Columns:
    """The names of the columns, with a template of texts."""
    return replace(columns or Columns(), **({"text": template} if template is not None else {}))


def check_columns(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], columns: Columns, sources: Mapping[str, str]
) -> None:
    """Refuse rows that have no question with answer, no conversation and no text, and show how to name theirs.

    Args:
        tables: The rows of each set.
        columns: Names of their columns.
        sources: Where the rows of each set are from.

    Raises:
        ValueError: If there are such rows.
    """
    for name, rows in tables.items():
        if name in _AUDIT_ALONE:
            continue
        for number, row in enumerate(columns.filled(rows, name)):
            asked = columns.question in row and columns.answer in row
            if not asked and columns.messages not in row and columns.text not in row:
                there = [str(column) for column in rows[number]]
                if not there:
                    raise ValueError(f"Row {number} of the {name} rows ({sources[name]}) has no columns. Remove it.")
                text = ", ".join(f"{column}: {{{column}}}" for column in there[:_EXAMPLE])
                raise ValueError(
                    f"Row {number} of the {name} rows ({sources[name]}) has the columns {there}, but no question with "
                    f'answer and no text. Say how a row reads, as a text: --template "{text}"; or as a question: '
                    f"{_question(there)}."
                )


def _question(columns: Sequence[str]) -> str:
    """Options that read a row as a question: by its columns where these have the names of such, else by templates."""
    asked, said = (next((c for c in columns if c.lower() in names), None) for names in (_ASKED, _SAID))
    if asked is not None and said is not None:
        return f"--columns.question {asked} --columns.answer {said}"
    first, last = columns[0], columns[-1]
    return f'--columns.question "What is the {last} of {{{first}}}?" --columns.answer "{{{last}}}"'


def absolute(source: str) -> str:
    """A path that holds from any folder; the id of a hub data set as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() or any(end in path.name for end in TABLE_ENDINGS) else source


def _is_tables(source: str) -> bool:
    """Whether it is a folder of tables, and not one that the library datasets has written."""
    folder = Path(source).expanduser()
    written = ("state.json", "dataset_dict.json")
    return folder.is_dir() and not any((folder / name).exists() for name in written) and bool(_in_folder(folder))


def _in_folder(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        name, _, ending = file.name.removesuffix(".gz").partition(".")
        if file.is_file() and f".{ending}" in TABLE_ENDINGS and name in _SETS:
            if name in found:
                raise ValueError(f"{folder} has two tables {name}: {Path(found[name]).name} and {file.name}. Keep one.")
            found[name] = str(file)
    if found and "forget" not in found:
        raise FileNotFoundError(f"{folder} has no table forget.jsonl, but {', '.join(sorted(found))}.")
    return found
