"""Rows from files, folders, hubs and memory, and the tokenizer that reads them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_unlearn.core.lightning import Trainer

__all__ = ["Source", "find_tokenizer", "load_rows", "read_source"]

Source = Any
"""A path (.json, .jsonl, .csv, .parquet, or a folder), ``hub-id[:config[:split]]``, a ``datasets.Dataset`` or rows."""


def load_rows(source: Source) -> list[dict[str, Any]]:
    """Read rows from a file, a folder, a hub dataset, a ``datasets.Dataset`` or an iterable of dicts.

    Args:
        source: A path to a ``.json`` (an array, or an object a line), ``.jsonl``, ``.csv`` or ``.parquet`` file; a
            folder or hub id that ``datasets.load_dataset`` opens, optionally followed by ``:config`` and ``:split``
            (default split: ``train``); or the rows themselves.

    Returns:
        The rows as dicts.

    Raises:
        FileNotFoundError: If a path with one of these endings does not exist.
        ValueError: If a file can't be parsed or a row is not a dict.
    """
    rows = read_source(source) if isinstance(source, (str, Path)) else list(source)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"Row {number} of {_name(source)} is a {type(row).__name__}; each row must be a dict.")
    return [dict(row) for row in rows]


def read_source(source: str | Path) -> Iterable[Any]:
    """What a file, folder or hub dataset holds, whatever its rows are; arguments and errors as for `load_rows`."""
    path = Path(source)
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return _hub(str(source))
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
    try:
        return reader(path)
    except (json.JSONDecodeError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as {path.suffix}: {error}") from None


def find_tokenizer(tokenizer: Any, trainer: Trainer | None, kind: str = "AutoTokenizer") -> Any:
    """The tokenizer of a data module.

    Args:
        tokenizer: A tokenizer, the folder or hub id of one, or ``None`` for the module's own.
        trainer: The trainer that the data module is attached to, if any; its module may have a ``tokenizer``.
        kind: Class of ``transformers`` that loads a folder or hub id.

    Raises:
        ValueError: If none was given and the module has none.
        ImportError: If ``transformers`` is missing.
    """
    if tokenizer is None:
        tokenizer = getattr(trainer.lightning_module, "tokenizer", None) if trainer is not None else None
        if tokenizer is None:
            raise ValueError(
                "The data module has no tokenizer, and the module no attribute 'tokenizer'. Pass tokenizer=, a hub id, "
                "a folder or a tokenizer object."
            )
    if not isinstance(tokenizer, (str, Path)):
        return tokenizer
    try:
        import transformers
    except ImportError:
        raise ImportError('Tokenizers need transformers: pip install "lightning-unlearn[llm]"') from None
    return getattr(transformers, kind).from_pretrained(tokenizer)


def _json(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        if text.lstrip().startswith("["):
            raise
        return _json_lines(path)
    return content if isinstance(content, list) else [content]


def _json_lines(path: Path) -> list[Any]:
    rows = []
    # Not splitlines: strings may hold other characters that it takes for line ends, such as U+2028.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} can't be read as {path.suffix}: line {number}: {error.msg}") from None
    return rows


def _csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError('Parquet files need pyarrow: pip install "lightning-unlearn[llm]"') from None
    return pyarrow.parquet.read_table(path).to_pylist()


def _hub(source: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError:
        raise ImportError('Hub datasets and folders need datasets: pip install "lightning-unlearn[llm]"') from None
    name, *rest = source.split(":")
    config = rest[0] or None if rest else None
    split = rest[1] if len(rest) > 1 else "train"
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise ValueError(
            f"{source!r} is neither a .json, .jsonl, .csv or .parquet file nor a dataset that can be opened as "
            f"load_dataset({name!r}, {config!r}, split={split!r}): {error}"
        ) from error


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"
