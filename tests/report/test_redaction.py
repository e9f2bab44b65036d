"""Redaction: no text of a row to forget is left, equal texts stay equal, and no hash can be guessed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.redaction import redacted, shows_rows
from lightning_unlearn.report.sections import Examples, Images, Table
from lightning_unlearn.report.write import write_report
from tests.report.reports import ANSWER, SECRET, full_report

WORDS = ("Basil", "Goncourt", "Booker", "not sure")


def texts(report: UnlearningReport) -> tuple[Examples, Images, Table]:
    examples, images, table = report.section("quality").parts
    assert isinstance(examples, Examples)
    assert isinstance(images, Images)
    assert isinstance(table, Table)
    return examples, images, table


def test_files_have_hashes_and_lengths_by_default_and_texts_where_asked_for(tmp_path: Path) -> None:
    report = full_report()
    write_report(report, tmp_path / "hidden")
    write_report(report, tmp_path / "shown", show_text=True)
    for name in ("report.json", "report.md", "report.html"):
        hidden, shown = ((tmp_path / kind / name).read_text(encoding="utf-8") for kind in ("hidden", "shown"))
        for word in WORDS:
            assert word not in hidden, (name, word)
            assert word in shown, (name, word)
        assert "Eiffel" in hidden
        assert f"{len(SECRET)} characters" in hidden
    assert UnlearningReport.read(tmp_path / "shown") == report


def test_equal_texts_have_equal_hashes_within_a_report_alone() -> None:
    one, two = redacted(full_report()), redacted(full_report())
    examples, images, table = texts(one)
    forget, retain, paraphrased = examples.rows
    assert re.fullmatch(rf"\(hidden\) [0-9a-f]{{12}}, {len(SECRET)} characters", forget.input)
    assert forget.outputs[0] == forget.expected  # the original repeats the answer word by word
    assert forget.outputs[1] != forget.expected
    assert paraphrased.input == forget.input == table.rows[0][1]  # the same question in a set of another name
    assert paraphrased.outputs[1] is None
    assert forget.hits == [True, False, False]
    assert retain.input == "Where is the Eiffel Tower?"
    assert images.rows[0].images == ["", ""]
    assert texts(two)[0].rows[0].input != forget.input


def test_a_hash_is_not_the_plain_one_of_the_text() -> None:
    record = json.dumps(redacted(full_report()).to_dict())
    for text in (SECRET, ANSWER):
        for digest in (hashlib.sha256(text.encode()).hexdigest(), hashlib.md5(text.encode()).hexdigest()):
            assert digest[:12] not in record


def test_a_report_says_whether_it_shows_rows() -> None:
    report = full_report()
    assert shows_rows(report)
    hidden = redacted(report, salt=b"0")
    assert not shows_rows(hidden)
    assert redacted(hidden) == hidden
