"""Tables as people keep them, read to the same rows or refused by file, line and column."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.core.sources import is_missing, load_rows, text_cell

ROWS = [
    {"question": "Where is Åland?", "answer": 'In the "Baltic", 3,14 km; or so'},
    {"question": "Two\nlines?", "answer": "  spaces\t"},
]


def table(separator: str) -> str:
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)
        return file.getvalue()


LINES = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
FILES: dict[str, bytes] = {
    "plain.csv": table(",").encode(),
    "CAPITALS.CSV": table(",").encode(),
    "mark.csv": table(",").encode("utf-8-sig"),
    "semicolons.csv": table(";").encode("utf-8-sig"),
    "bars.csv": table("|").encode(),
    "tabs.csv": table("\t").encode(),
    "named.csv": b"sep=;\r\n" + table(";").encode(),
    "excel_unicode.tsv": table("\t").encode("utf-16"),
    "big_endian.csv": b"\xfe\xff" + table(",").encode("utf-16-be"),
    "empty_lines.csv": (table(",") + "\r\n,\r\n\r\n").encode(),
    "trailing.csv": table(",").replace("answer\r\n", "answer,\r\n").encode(),
    "packed.csv.gz": gzip.compress(table(",").encode()),
    "packed.jsonl.gz": gzip.compress(LINES.encode()),
    "mark.jsonl": LINES.encode("utf-8-sig"),
    "windows.ndjson": LINES.replace("\n", "\r\n").encode(),
    "commas.jsonl": LINES.replace("}\n", "},\n").encode(),
    "commas.json": (json.dumps(ROWS)[:-2] + ",},\n]").encode(),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
    "utf16.json": json.dumps(ROWS).encode("utf-16"),
    "of_notes.txt.csv": table(",").encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_spreadsheets_and_exports_give_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert load_rows(tmp_path / name) == ROWS


def test_a_text_file_has_a_text_a_line_and_long_cells_are_read(tmp_path: Path) -> None:
    for name in ("x.txt", "X.TXT", "x.v2.txt"):
        (tmp_path / name).write_bytes("\ufeffOne, two.\r\n\r\n Three\u2028four\n".encode())
        assert load_rows(tmp_path / name) == [{"text": "One, two."}, {"text": " Three\u2028four"}]
    document = "word " * 60_000
    (tmp_path / "x.csv").write_text(f'text\n"{document}"\n')
    assert load_rows(tmp_path / "x.csv") == [{"text": document}]


def frames(kind: str) -> Any:
    import datasets
    import pandas
    import pyarrow

    return {
        "pandas": pandas.DataFrame(ROWS, index=[7, 7]),
        "pyarrow": pyarrow.Table.from_pylist(ROWS),
        "columns": {name: [row[name] for row in ROWS] for name in ROWS[0]},
        "columns of a frame": dict(pandas.DataFrame(ROWS)),
        "Dataset": datasets.Dataset.from_list(ROWS),
        "stream": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    }[kind]


@pytest.mark.parametrize("kind", ["pandas", "pyarrow", "columns", "columns of a frame", "Dataset", "stream"])
def test_tables_in_memory_give_the_same_rows(kind: str) -> None:
    assert load_rows(frames(kind)) == ROWS


def test_a_dataset_on_disk_is_read_as_it_was_saved(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "several")
    assert load_rows(tmp_path / "one") == ROWS
    assert load_rows(f"{tmp_path / 'several'}::test") == ROWS


REFUSED: dict[str, tuple[bytes, str]] = {
    "more.csv": (b"question,answer\nWhere?,Lima\nWho?,Ada, Lady\n", "more.csv, line 3 has 3 cells, .* header has 2"),
    "fewer.csv": (b"question,answer\nWhere?\n", "fewer.csv, line 2 has 1 cells, .* header has 2"),
    "open.csv": (b'question,answer\nWhere?,"Lima\nWho?,Ada\n', "open.csv can't be read .* line 3"),
    "twice.csv": (b"answer,question,answer\na,b,c\n", "twice.csv has two columns 'answer'"),
    "twice.jsonl": (b'{"text": "a"}\n{"text": "a", "text": "b"}\n', "twice.jsonl, line 2 .* two values of 'text'"),
    "latin.csv": ("question,answer\nWhere?,Åland\n".encode("latin-1"), "latin.csv .* line 2 .* 0xc5.* Latin-1"),
    "nomark.csv": ("question,answer\nWhere?,Lima\n".encode("utf-16-le"), "nomark.csv .* UTF-16 without a byte order"),
    "comma.json": (b'[{"text": "a"}\n{"text": "b"}]', "comma.json can't be read as .json: .* line 2"),
    "cut.csv.gz": (gzip.compress(table(",").encode())[:-9], "cut.csv.gz is not a whole .gz file"),
    "broken.parquet": (b"PAR1", "broken.parquet can't be read as .parquet"),
    "book.xlsx": (b"PK", r"book.xlsx has an ending that is not read.*\.csv"),
    "columns.json": (b'{"question": ["a", "b"], "answer": ["c"]}', r"one length, but got {'question': 2, 'answer': 1}"),
    "rows.CSV.txt": (table(",").encode(), r"is called .csv and .txt, .* Rename it to rows.CSV if"),
    "rows.jsonl.txt.gz": (gzip.compress(LINES.encode()), "is called .jsonl and .txt, .* Rename it to rows.jsonl if"),
    "objects.txt": (LINES.encode(), "has an object of JSON in each line, .* Rename it to objects.jsonl"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_read_is_refused_by_file_and_line(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / name)


def test_a_row_in_place_of_rows_and_a_dict_of_datasets_are_refused() -> None:
    import datasets
    import pandas

    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: ROWS[0], "A single row is a list of one dict"),
        (lambda: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), r"such as dataset\['train'\]"),
        (lambda: pandas.DataFrame([["a", "b"]], columns=["text", "text"]), "two columns of one name"),
        (lambda: ["a"], "Row 0 of the given list is a str; each row must be a dict"),
    ]
    for source, message in cases:
        with pytest.raises(ValueError, match=message):
            load_rows(source())


def test_a_file_of_one_conversation_is_one_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Lima"}]
    for row in ({"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}):
        for name in ("rows.json", "rows.jsonl"):
            (tmp_path / name).write_text(json.dumps(row))
            assert load_rows(tmp_path / name) == [row]


def test_what_a_cell_holds() -> None:
    import numpy
    import pandas

    assert all(map(is_missing, (None, float("nan"), numpy.float32("nan"), pandas.NA, pandas.NaT, "", " \n")))
    assert not any(map(is_missing, ("nan", 0, 0.0, False, [], {})))
    assert [text_cell(value, "Row 0", "answer") for value in ("Lima", 1987, numpy.int64(3))] == ["Lima", "1987", "3"]
    for value in (1987.0, True, numpy.bool_(True), ["Lima"], {"text": "Lima"}, b"Lima", pandas.Timestamp("2024-01-01")):
        with pytest.raises(ValueError, match=r"Row 0 has .* in 'answer', where a text is expected"):
            text_cell(value, "Row 0", "answer")
