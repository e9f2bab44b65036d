"""Tables in files: delimited text, JSON, plain text and Parquet, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["TABLE_ENDINGS", "is_table", "read_table"]

TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet")
"""Endings of the files that are read; ``.gz`` may follow each."""

_ALIASES = {".tab": ".tsv", ".ndjson": ".jsonl", ".pq": ".parquet"}
_SEPARATORS = (",", ";", "\t", "|")
_MARKS = {  # the longer ones first: that of UTF-32 begins as that of UTF-16
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_STRING_OR_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(\s*[\]}])')


def is_table(path: str | Path) -> bool:
    """Whether a file is one that is read, by the ending of its name."""
    return _ending(Path(path)) in TABLE_ENDINGS


def read_table(path: Path) -> list[Any]:
    """The rows of a file: a dict each, of ``.txt`` with its ``text``, and what is in the array for ``.json``.

    Args:
        path: An existing file, whose ending gives the format.

    Raises:
        ValueError: If it can't be read as what it is called, with the line where that is known.
        ImportError: If a Parquet file is given without ``pyarrow``.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is not a whole .gz file: {error}.") from None
    ending = _ending(path)
    if ending == ".parquet":
        return _parquet(path, content)
    text = _decoded(path, content)
    if ending in (".csv", ".tsv"):
        return _delimited(path, text, "\t" if ending == ".tsv" else None)
    if ending == ".json":
        return _json(path, text)
    if ending == ".jsonl":
        return _json_lines(path, text)
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    _refuse_other_format(path, lines)
    return [{"text": line} for line in lines]


def _refuse_other_format(path: Path, lines: list[str]) -> None:
    """Refuse a table that is called .txt: each line, with its braces or commas, would be taken for a text."""
    inner = _ending(Path(path.name.lower().removesuffix(".gz").removesuffix(".txt")))
    if inner in TABLE_ENDINGS:
        raise ValueError(
            f"{path} is called {inner} and .txt, and each line of a .txt file is a text. Rename it to "
            f"{path.name.removesuffix('.gz')[:-4]} if it is a table, or leave {inner} out of its name."
        )
    if len(lines) and all(line.lstrip()[0] == "{" and _is_object(line) for line in lines):
        raise ValueError(
            f"{path} has an object of JSON in each line, and each line of a .txt file is a text. Rename it to "
            f"{path.name.removesuffix('.gz')[:-4]}.jsonl."
        )


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _ending(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] == ".gz":
        endings.pop()
    ending = endings[-1] if endings else ""
    return _ALIASES.get(ending, ending)


def _decoded(path: Path, content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        looks = "UTF-16 without a byte order mark" if b"\x00" in content[:200] else "Latin-1 or Windows-1252"
        raise ValueError(
            f"{path} can't be read as {encoding}: line {line} has the byte 0x{content[error.start]:02x}, so it is "
            f"perhaps {looks}. Save it as UTF-8 ('CSV UTF-8' in a spreadsheet)."
        ) from None
    if "\x00" in text:
        looks = "UTF-16 without a byte order mark" if encoding == "utf-8" else "binary"
        raise ValueError(f"{path} has NUL characters, so it is perhaps {looks}. Save it as UTF-8.")
    return text


def _delimited(path: Path, text: str, separator: str | None) -> list[dict[str, str]]:
    if named := re.match(r"sep=(.)\r?\n", text):  # a line that Excel writes and reads
        separator, text = named[1], text[named.end() :]
    first = 2 if named else 1
    if separator is None:
        separator = _separator(text)
    try:
        lines = [(line + first - 1, cells) for line, cells in _cells(text, separator) if any(map(str.strip, cells))]
    except csv.Error as error:
        raise ValueError(
            f"{path} can't be read as a table with {separator!r} between its cells: {error}. A cell with a quotation "
            'mark, a line break or a separator in it is written in quotes, with "" for each quotation mark.'
        ) from None
    if not lines:
        return []
    (_, header), *lines = lines
    names = [name.strip() for name in header]
    while not names[-1]:  # a separator at the end of the line
        names.pop()
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r} in its header {names}. Rename or remove one.")
    rows = []
    for line, cells in lines:
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {line} has {len(cells)} cells, but the header has {len(names)}: {names}. Write a cell "
                f"with {separator!r} in it in quotes, directly behind the separator, and leave no cell out."
            )
        rows.append({name: cell for name, cell in zip(names, cells, strict=True) if name})
    return rows


def _separator(text: str) -> str:
    """The separator that gives the most columns, with as many in each row as in the header."""

    def fit(separator: str) -> tuple[int, int]:
        try:
            widths = [len(cells) for _, cells in _cells(text, separator) if any(map(str.strip, cells))]
        except csv.Error:
            return (0, 0)
        columns = widths[0] if widths else 1
        return (0, 0) if columns == 1 else (-sum(width != columns for width in widths), columns)

    header = text.lstrip().partition("\n")[0]
    several = [separator for separator in _SEPARATORS if separator in header]
    if len(several) < 2:
        return several[0] if several else ","
    return max(several, key=fit)


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with the line that the row ends on."""
    with _long_cells():
        # Strict: otherwise a quotation mark that is never closed takes in the rest of the file.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from None


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document; the default is 128 KiB
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json(path: Path, text: str) -> list[Any]:
    try:
        content = _parsed(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"{path} can't be read as .json: {error}.") from None
        return _json_lines(path, text)
    except _TwiceError as error:
        raise ValueError(f"{path} has {error}. Rename or remove one.") from None
    return content if isinstance(content, list) else [content]


def _json_lines(path: Path, text: str) -> list[Any]:
    rows = []
    # Not splitlines: strings may hold other characters that it takes for line ends, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [_parsed(line.strip().rstrip(","))] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} can't be read as {_ending(path)}: line {number}: {error.msg}") from None
        except _TwiceError as error:
            raise ValueError(f"{path}, line {number} has {error}. Rename or remove one.") from None
    return rows


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _parsed(text: str) -> Any:
    """What a JSON text says; a comma before a closing bracket does not count."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        tolerant = _STRING_OR_COMMA.sub(lambda match: match[1] or match[2], text)
        if tolerant == text:
            raise
    return json.loads(tolerant, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(f"an object with two values of {next(n for n in names if names.count(n) > 1)!r}")
    return content


def _parquet(path: Path, content: bytes) -> list[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('Parquet files need pyarrow: pip install "lightning-unlearn[llm]"') from None
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read as .parquet: {error}.") from None
    return table.to_pylist()
