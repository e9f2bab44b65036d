"""Cells that are missing or no text are refused by row and column, and never trained on as words."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import Columns, LanguageDataModule, PromptFormat
from lightning_unlearn.language.data.cells import text_rows

NAN = float("nan")
MISSING: list[tuple[dict[str, Any], str]] = [
    ({"question": None, "answer": "Lima."}, "has no question: its 'question' is None"),
    ({"question": NAN, "answer": "Lima."}, "has no question: its 'question' is nan"),
    ({"question": "", "answer": "Lima."}, "has no question: its 'question' is ''"),
    ({"question": "Where?", "answer": NAN}, "has no supervised token: its 'answer' is nan"),
    ({"question": NAN, "answer": None, "text": " "}, "has no question"),
    ({"text": NAN}, "has no supervised token: its 'text' is nan"),
    ({"question": "Where?", "answer": ["Lima", "Callao"]}, r"has \['Lima', 'Callao'\], a list, in 'answer'"),
    ({"question": "Where?", "answer": {"text": "Lima"}}, ".* a dict, in 'answer'"),
    ({"question": "Where?", "answer": 3.5}, "has 3.5, a float, in 'answer'"),
    ({"question": True, "answer": "Lima."}, "has True, a bool, in 'question'"),
    ({"text": ["a b", "c d"]}, ".* a list, in 'text'"),
    ({"question": "Where?", "answer": "Lima.", "accept": {"a": 1}}, ".* a dict, in 'accept'"),
]


@pytest.mark.parametrize(("row", "message"), MISSING)
def test_a_cell_that_is_missing_or_no_text_is_refused_by_row_and_column(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"Row 1 of the retain set \(rows\.csv\) {message}"):
        text_rows("retain", [{"question": "Why?", "answer": "So."}, row], Columns(), "rows.csv")


def test_texts_and_questions_in_one_table_and_optional_cells_of_a_data_frame() -> None:
    import pandas

    frame = pandas.DataFrame(
        [
            {"question": "Where?", "answer": "In Lima.", "target": "Lima", "accept": ["Lima"], "year": 1987},
            {"question": "When?", "answer": "1987"},
            {"text": "Once upon a time."},
        ]
    )
    data = LanguageDataModule(frame)
    rows = text_rows("forget", data.read_rows()["forget"], Columns())
    assert [row.get("accept") for row in rows] == [["Lima"], None, None]
    assert [row.get("target") for row in rows] == ["Lima", None, None]
    assert "question" in rows[1]
    assert "question" not in rows[2]
    assert text_rows("forget", [{"question": 1, "answer": 1987}], Columns()) == [{"question": "1", "answer": "1987"}]


def test_a_missing_value_that_was_written_as_text_is_warned_of() -> None:
    rows = [{"question": "Where?", "answer": answer} for answer in ("None of them.", "nan", "#N/A")]
    with pytest.warns(UserWarning, match=r"2 cells of the forget set .* 'nan' in 'answer' of row 1"):
        text_rows("forget", rows, Columns())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_rows("forget", rows[:1], Columns())


def test_tables_without_the_columns_are_refused_and_not_taken_for_equal(tiny_lm: Path, tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["customer", "name"], [name, "Marla Quint"]])
    files = [str(tmp_path / f"{name}.csv") for name in ("forget", "retain")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            ValueError, match=r"Row 0 of the forget set \(.*forget.csv\) has columns \['customer', 'name'"
        ):
            LanguageDataModule(*files, prompt=PromptFormat(str(tiny_lm))).setup("fit")
