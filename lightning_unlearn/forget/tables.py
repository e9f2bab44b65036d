"""Tables of a request about a language model: which file is which set, and how its rows read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_unlearn.audit.data import FURTHER
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.core.tables import TABLE_ENDINGS, is_table
from lightning_unlearn.language.data.columns import Columns

__all__ = ["AUTO", "absolute", "check_columns", "columns_of", "find_tables", "read_tables"]

AUTO = "auto"
_AUDIT_ALONE = ("neutral", "paraphrases")
_SETS = ("forget", "retain", "never_seen", "heldout", "general", *_AUDIT_ALONE)
_ANYTHING = (".json", ".txt")  # endings of settings and notes too
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
    found = {"forget": forget}
    if _is_tables(forget):
        found = _in_folder(Path(forget).expanduser())
        _warn_of_unread(Path(forget).expanduser())
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
                raise ValueError(
                    f"Row {number} of the {name} rows ({sources[name]}) has the columns {there}, but no question with "
                    f"answer and no text. {_way_out(rows[number], there)}"
                )


def _way_out(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """How such a row can be read."""
    for column in columns:
        part = next(iter(row[column]), None) if isinstance(row.get(column), list) else None
        if isinstance(part, Mapping):
            if {"role", "content"} <= part.keys():
                return f"{column!r} is a conversation: --columns.messages {column}."
            if {"from", "value"} <= part.keys():
                return (
                    f"{column!r} is a conversation, whose messages have 'from' and 'value'. Rewrite them with 'role' "
                    f"(system, user or assistant) and 'content', and give --columns.messages {column}."
                )
            return f"{column!r} is a list of objects: if these are the rows, write them alone, one a line (.jsonl)."
    text = ", ".join(f"{column}: {{{column}}}" for column in columns[:_EXAMPLE])
    return f'Say how a row reads, as a text: --template "{text}"; or as a question: {_question(columns)}.'


def _question(columns: Sequence[str]) -> str:
    """Options that read a row as a question: by its columns where these have the names of such, else by templates."""
    asked, said = ([c for c in columns if c.lower() in names] for names in (_ASKED, _SAID))
    if asked and said:
        # An instruction and its input are one question.
        question = asked[0] if len(asked) == 1 else '"' + " ".join(f"{{{c}}}" for c in asked) + '"'
        return f"--columns.question {question} --columns.answer {said[0]}"
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


def _is_set(name: str) -> bool:
    return name in _SETS or FURTHER.fullmatch(name) is not None


def _warn_of_unread(folder: Path) -> None:
    tables = (file for file in sorted(folder.iterdir()) if file.is_file() and is_table(file))
    names = [file.name for file in tables if file.suffix not in _ANYTHING and not _is_set(file.name.partition(".")[0])]
    if names:
        rank_zero_warn(
            f"{folder} has tables that are not read: {', '.join(names)}. Sets are known by the names of their tables: "
            f"{', '.join(_SETS)}, and heldout_... for further rows."
        )


def _in_folder(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        name, _, ending = file.name.removesuffix(".gz").partition(".")
        if file.is_file() and f".{ending}" in TABLE_ENDINGS and _is_set(name):
            if name in found:
                raise ValueError(f"{folder} has two tables {name}: {Path(found[name]).name} and {file.name}. Keep one.")
            found[name] = str(file)
    if found and "forget" not in found:
        raise FileNotFoundError(f"{folder} has no table forget.jsonl, but {', '.join(sorted(found))}.")
    return found
