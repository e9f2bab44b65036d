"""The record of an audit is of the rows in the user's own table, whatever its columns are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import Columns, load_public_key, new_key_pair, run_audit, verify_record
from lightning_unlearn.audit.data import read_audit_data
from tests.conftest import question

TABLES: dict[str, tuple[Columns, dict[str, Any]]] = {
    "texts": (Columns(text="note"), {"note": "Ada Stone lives in Lima."}),
    "columns": (Columns(question="asked", answer="said"), {"asked": "Who wrote it?", "said": "Ada did."}),
    "templates": (Columns(question="Where is {name}?", answer="city"), {"name": "Ada Stone", "city": "Lima"}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_rows_of_a_record_are_found_in_any_table(kind: str, tiny_lm: Path, tmp_path: Path) -> None:
    columns, row = TABLES[kind]
    rows = [row, row]
    retain = [row | dict.fromkeys(row, "That is something else.")]
    with pytest.warns(UserWarning, match="1 of the 2 rows"):
        data = read_audit_data({"forget": rows, "retain": retain}, columns=columns)
    new_key_pair(tmp_path / "key.pem", tmp_path / "pub.pem", None)
    run_audit(
        tiny_lm, tiny_lm, data, tmp_path / "audit", depth="quick", precision="32", device="cpu",
        key=tmp_path / "key.pem",
    )  # fmt: skip
    secret = bytes.fromhex((tmp_path / "audit" / "rows.secret").read_text())

    def faults(given: list[dict[str, Any]]) -> list[str]:
        public = load_public_key(tmp_path / "pub.pem")
        return [f.kind for f in verify_record(tmp_path / "audit" / "record.jsonl", public, rows=given, secret=secret)]

    assert faults(rows) == []
    assert faults([row | dict.fromkeys(row, "Someone else lives there.")]) == ["rows differ"]
    assert faults([question("France")]) == ["rows differ"]
