"""Rows from files, folders, hubs and memory, and the tokenizer that reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lightning_unlearn.core.lightning import Trainer
from lightning_unlearn.core.tables import TABLE_ENDINGS, is_table, read_table

__all__ = [
    "Source",
    "find_tokenizer",
    "is_missing",
    "is_text",
    "load_rows",
    "open_tokenizer",
    "read_source",
    "source_name",
    "text_cell",
]

Source = Any
"""A path (.csv, .tsv, .json, .jsonl, .txt, .parquet, each also .gz, or a folder), ``hub-id[:config[:split]]``, a
``datasets.Dataset``, a data frame, a dict of columns, or rows."""


def load_rows(source: Source) -> list[dict[str, Any]]:
    """Read rows from a file, a folder, a hub dataset, a data frame, a dict of columns or an iterable of dicts.

    Args:
        source: A path to a ``.csv`` or ``.tsv`` file (UTF-8, or UTF-16 with a byte order mark; a comma, semicolon, tab
            or bar between the cells; its first line names the columns), ``.json`` (an array, or an object a line),
            ``.jsonl``, ``.txt`` (a text a line) or ``.parquet`` file, each also with ``.gz``; a folder or hub id that
            ``datasets.load_dataset`` opens, optionally followed by ``:config`` and ``:split`` (default split:
            ``train``); a ``datasets.Dataset``, a data frame of pandas or polars, a table of pyarrow; a dict of columns
            of one length; or the rows themselves.

    Returns:
        The rows as dicts.

    Raises:
        FileNotFoundError: If a path with one of these endings does not exist.
        ValueError: If a file can't be parsed, columns differ in length, or a row is not a dict.
    """
    rows = read_source(source) if isinstance(source, (str, Path)) else _from_memory(source)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {number} of {source_name(source)} is a {type(row).__name__}; each row must be a dict."
            )
    return [dict(row) for row in rows]


def read_source(source: str | Path) -> list[Any]:
    """What a file, folder or hub dataset holds, whatever its rows are; arguments and errors as for `load_rows`."""
    path = Path(source).expanduser()
    if path.is_file() or is_table(path):
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
        if not is_table(path):
            raise ValueError(
                f"{path} has an ending that is not read. Rows come from {', '.join(TABLE_ENDINGS)} files, each also "
                "with .gz: a spreadsheet is saved as 'CSV UTF-8'."
            )
        rows = read_table(path)
        return _from_memory(rows[0]) if len(rows) == 1 and _is_columns(rows[0]) else rows
    return list(_hub(str(source)))


def source_name(source: Source) -> str:
    """A source as messages call it."""
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: ``None``, NaN, the missing values of pandas, or white space alone."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and math.isnan(value)


def is_text(value: Any) -> bool:
    """Whether a cell can be written in one way alone: it is a text or a whole number."""
    return isinstance(value, str) or (isinstance(value, Integral) and not isinstance(value, bool))


def text_cell(value: Any, where: str, column: str) -> str:
    """The text of a cell that is not missing.

    Args:
        value: The cell: a text, or a whole number.
        where: Row and source, for the message, such as ``"Row 3 of the forget set (rows.csv)"``.
        column: Name of the column.

    Raises:
        ValueError: If it is something else, for which there are several ways to write it.
    """
    if is_text(value):
        return value if isinstance(value, str) else str(int(value))
    raise ValueError(
        f"{where} has {value!r}, a {type(value).__name__}, in {column!r}, where a text is expected. Write it as the "
        "text that is meant, in quotes, or remove the row."
    )


def find_tokenizer(tokenizer: Any, trainer: Trainer | None, kind: str = "AutoTokenizer") -> Any:
    """The tokenizer of a data module.

    Args:
        tokenizer: A tokenizer, the folder or hub id of one, or ``None`` for the module's own.
        trainer: The trainer that the data module is attached to, if any; its module may have a ``tokenizer``.
        kind: Class of ``transformers`` that loads a folder or hub id.

    Raises:
        ValueError: If none was given and the module has none, or a folder has no tokenizer files.
        ImportError: If ``transformers`` is missing.
    """
    if tokenizer is None:
        module = trainer.lightning_module if trainer is not None else None
        tokenizer = getattr(module, "tokenizer", None)
        if tokenizer is None:
            lacks = (
                "the module has none either: its model came without tokenizer files"
                if hasattr(module, "tokenizer")
                else "the module no attribute 'tokenizer'"
            )
            raise ValueError(
                f"The data module has no tokenizer, and {lacks}. Pass tokenizer=, a hub id, a folder or a tokenizer "
                "object; in LanguageDataModule it is prompt=PromptFormat(tokenizer=...)."
            )
    return open_tokenizer(tokenizer, kind) if isinstance(tokenizer, (str, Path)) else tokenizer


def open_tokenizer(source: str | Path, kind: str = "AutoTokenizer", **options: Any) -> Any:
    """The tokenizer of a folder or hub id.

    Args:
        source: The folder or hub id.
        kind: Class of ``transformers`` that loads it.
        options: Further arguments of ``from_pretrained``.

    Raises:
        ValueError: If there are no tokenizer files. For many families ``transformers`` then makes up a tokenizer that
            knows special tokens alone.
        ImportError: If ``transformers`` is missing.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError('Tokenizers need transformers: pip install "lightning-unlearn[llm]"') from None
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(source, **options)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"No tokenizer can be opened from {source}: {reason} Give a folder with tokenizer files, such as "
            "tokenizer.json, or a hub id."
        ) from error
    ordinary = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys()
    if len(ordinary) < 2:
        raise ValueError(
            f"{source} has no tokenizer files, such as tokenizer.json: transformers made up a "
            f"{type(tokenizer).__name__} of {len(tokenizer)} special tokens. Give a folder with a tokenizer, or a hub "
            "id."
        )
    return tokenizer


def _from_memory(source: Any) -> list[Any]:
    """Rows of a data frame, a table of pyarrow, a dict of columns, a dataset or an iterable."""
    if hasattr(source, "collect_schema") and hasattr(source, "collect"):  # a lazy frame of polars
        source = source.collect()
    if hasattr(source, "to_dicts"):  # polars
        return source.to_dicts()
    if hasattr(source, "to_pylist"):  # pyarrow
        return source.to_pylist()
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas
        names = [str(name) for name in source.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"The data frame has two columns of one name among {names}. Rename or remove one.")
        return [dict(zip(names, row.values(), strict=True)) for row in source.to_dict("records")]
    if isinstance(source, Mapping):
        return _from_columns(source)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not hasattr(source, "__iter__"):
        return [source[i] for i in range(len(source))]
    return list(source)


def _from_columns(columns: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Rows of a dict of columns."""
    if not _is_columns(columns):
        kinds = {str(name): type(value).__name__ for name, value in columns.items()}
        raise ValueError(
            f"A dict of rows has a list for each column, but got {kinds}. A single row is a list of one dict, and of a "
            "dict of datasets one is chosen, such as dataset['train']."
        )
    lengths = {str(name): len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a dict must be of one length, but got {lengths}.")
    return [dict(zip(lengths, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_columns(content: Any) -> bool:
    """Whether it is a dict of columns, and not a row, in which some value is a text, a number or a list of messages."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(
            hasattr(column, "__len__")
            and hasattr(column, "__iter__")
            and not isinstance(column, (str, bytes, Mapping))
            and not isinstance(next(iter(column), None), Mapping)
            for column in content.values()
        )
        and not any(hasattr(column, "column_names") for column in content.values())  # a dict of datasets
    )


def _hub(source: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError:
        raise ImportError('Hub datasets and folders need datasets: pip install "lightning-unlearn[llm]"') from None
    name, *rest = source.split(":")
    config = rest[0] or None if rest else None
    split = rest[1] if len(rest) > 1 else "train"
    try:
        if (Path(name) / "state.json").is_file():  # written by save_to_disk
            return datasets.load_from_disk(name)
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)[split]
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise ValueError(
            f"{source!r} is neither a {', '.join(TABLE_ENDINGS)} file nor a dataset that can be opened as "
            f"load_dataset({name!r}, {config!r}, split={split!r}): {error}"
        ) from error
