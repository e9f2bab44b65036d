"""Verification of records: every kind of change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save_file

from lightning_unlearn import (
    AuditRecord,
    Head,
    decide,
    gate,
    model_entry,
    report_entry,
    rows_root,
    verdict_entry,
    verify_record,
)
from lightning_unlearn.audit.canonical import canonical, parsed, rebuilt, writable
from lightning_unlearn.audit.evidence import Evidence
from lightning_unlearn.audit.keys import key_id, signature
from lightning_unlearn.audit.record import digests, record_hash
from lightning_unlearn.audit.recount import recounted
from tests.audit.sets import RETAINED, SOUND, kept, result_of, rows

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SECRET = bytes(range(32))
ROWS = [{"question": "Who?", "answer": "Ada."}, {"question": "Where?", "answer": "Here."}]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A record of four entries with the files that it is about."""
    save_file({"a.weight": torch.ones(2, 2), "b.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "report.json").write_text(json.dumps({"sections": [{"value": 0.25, "n": 40}], "text": "a"}))
    record, now = AuditRecord(tmp_path / "r.jsonl"), datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    verdict = decide([result_of(SOUND)], [kept(RETAINED)])
    for hours, body in enumerate(
        (
            {"event": "request", "forget": {"rows": 2, "rows_root": rows_root(ROWS, SECRET)}},
            {"event": "models", "models": {"after": model_entry(tmp_path / "model.safetensors")}},
            {"event": "audit", "report": report_entry(tmp_path / "report.json")},
            {"event": "verdict", **verdict_entry(verdict)},
        )
    ):
        record.append(body, KEY, now + timedelta(hours=hours))
    return tmp_path


def faults(case: Path, **changes: Any) -> list[str]:
    """Places and kinds of all faults."""
    given = {"public_key": KEY.public_key(), "models": {"after": case / "model.safetensors"}}
    given |= {"report": case / "report.json", "rows": ROWS, "secret": SECRET, **changes}
    return [f"{Path(f.place).name}: {f.kind}" for f in verify_record(case / "r.jsonl", **given)]


def lines_of(case: Path) -> list[dict[str, Any]]:
    return [parsed(line) for line in (case / "r.jsonl").read_bytes().splitlines()]


def write(case: Path, lines: list[dict[str, Any]]) -> None:
    (case / "r.jsonl").write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


def rehashed(lines: list[dict[str, Any]], key: Ed25519PrivateKey | None = None) -> list[dict[str, Any]]:
    """The lines as someone would write them anew who hides a change, with a key of his own or without one."""
    prev = "0" * 64
    for line in lines:
        line["record"]["prev"] = prev
        line["hash"] = prev = record_hash(line["record"])
        line["digests"] = digests(line["record"])
        if key is not None:
            line["signature"] = {"key_id": key_id(key.public_key()), "value": signature(key, prev)}
    return lines


def test_a_sound_record_has_no_fault(case: Path) -> None:
    assert faults(case) == []


def test_a_changed_field_is_named_by_its_path(case: Path) -> None:
    lines = lines_of(case)
    lines[0]["record"]["body"]["forget"]["rows"] = 3
    write(case, lines)
    found = verify_record(case / "r.jsonl", KEY.public_key())
    assert [str(f) for f in found if f.kind == "changed field"] == ["entry 0: changed field: body.forget.rows"]
    assert {(f.place, f.kind) for f in found} == {
        ("entry 0", "wrong hash"),
        ("entry 0", "changed field"),
        ("entry 0", "bad signature"),
        ("entry 1", "broken prev"),
    }


def test_a_change_with_its_hash_breaks_the_chain_and_the_signature(case: Path) -> None:
    lines = lines_of(case)
    lines[0]["record"]["body"]["forget"]["rows"] = 3
    lines[0]["hash"] = record_hash(lines[0]["record"])
    lines[0]["digests"] = digests(lines[0]["record"])
    write(case, lines)
    assert faults(case, rows=None) == ["entry 1: broken prev", "entry 0: bad signature"]


def test_a_chain_that_is_written_anew_has_no_signature_of_the_key(case: Path) -> None:
    lines = lines_of(case)
    lines[0]["record"]["body"]["forget"]["rows"] = 3
    write(case, rehashed(lines))
    assert faults(case) == [f"entry {k}: bad signature" for k in range(4)]
    write(case, rehashed(lines, OTHER))
    assert faults(case) == [f"entry {k}: unknown key" for k in range(4)]
    for line in lines:
        del line["signature"]
    write(case, lines)
    assert faults(case) == [f"entry {k}: missing signature" for k in range(4)]
    (unchecked,) = verify_record(case / "r.jsonl")
    assert (unchecked.kind, unchecked.level) == ("not checked", "incomplete")


@pytest.mark.parametrize(
    ("order", "kinds"),
    [
        ([0, 2, 3], ["entry 1: missing", "entry 2: broken prev"]),
        ([1, 2, 3], ["entry 0: missing", "entry 1: broken prev"]),
        ([0, 1, 1, 2, 3], ["entry 1: duplicate", "entry 1: broken prev"]),
        (
            [0, 2, 1, 3],
            ["entry 1: order", *(f"entry {k}: broken prev" for k in (2, 1, 3)), "entry 1: time goes backwards"],
        ),
    ],
    ids=["middle removed", "first removed", "repeated", "reordered"],
)
def test_removed_repeated_and_reordered_entries(case: Path, order: list[int], kinds: list[str]) -> None:
    lines = lines_of(case)
    write(case, [lines[k] for k in order])
    assert faults(case, rows=None, models={}) == kinds


def test_a_cut_tail_is_found_by_a_head_that_was_kept_elsewhere(case: Path) -> None:
    lines = lines_of(case)
    head = Head(3, lines[3]["hash"])
    assert faults(case, expect_head=head) == []
    assert faults(case, expect_head=Head(1, lines[1]["hash"])) == []
    assert faults(case, expect_head=Head(3, lines[2]["hash"])) == ["entry 3: another head"]
    write(case, lines[:3])
    assert faults(case) == []  # nobody can see it
    assert faults(case, expect_head=head) == ["entry 3: cut tail"]


def test_time_does_not_go_backwards(case: Path) -> None:
    lines = lines_of(case)
    lines[2]["record"]["body"]["recorded_at"] = "2026-01-01T00:00:00Z"
    write(case, rehashed(lines, KEY))
    assert faults(case) == ["entry 2: time goes backwards"]
    lines[2]["record"]["body"]["recorded_at"] = "yesterday"
    write(case, rehashed(lines, KEY))
    assert faults(case) == ["entry 2: time"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: text.replace(b'"seq":1', b'"seq": 1'), "entry 1: not canonical"),
        (lambda text: text.replace(b"forgotten", b"forgotte\\u006e", 1), "entry 3: not canonical"),
        (lambda text: text.replace(b"\n", b"\r\n"), "entry 0: not canonical"),
        (lambda text: text[:-1], "line 4: cut off"),
        (lambda text: text.replace(b'"seq":1', b'"seq":1.0'), "line 2: unreadable"),
        (lambda text: text.replace(b'"seq":1', b'"seq":1,"seq":1'), "line 2: unreadable"),
        (lambda text: text.replace(b'{"digests"', b'{"more":1,"digests"', 1), "line 1: unknown schema"),
        (lambda text: b"[]\n" + text, "line 1: unknown schema"),
    ],
)
def test_other_bytes_are_named(case: Path, change: Callable[[bytes], bytes], kind: str) -> None:
    file = case / "r.jsonl"
    file.write_bytes(change(file.read_bytes()))
    assert kind in faults(case)


def test_another_schema_is_named(case: Path) -> None:
    lines = lines_of(case)
    lines[1]["record"]["schema"] = "lu-record/2"
    write(case, rehashed(lines, KEY))
    assert faults(case) == ["entry 1: unknown schema"]


@pytest.mark.parametrize(
    "damage",
    [
        {"models": {"after": {}}},
        {"models": {"after": {"content_hash": "", "kind": "tensors", "files": [1], "tensors": [[]]}}},
        {"report": {"numbers": 3}},
        {"report": {"numbers": [["a"]]}},
        {"event": "verdict", "rule": "lu-verdict/3", "evidence": {"gates": 1}},
        {"event": "verdict", "rule": "lu-verdict/3", "evidence": []},
        {"forget": {}, "recorded_at": 3, "models": [], "report": []},
    ],
)
def test_a_record_of_any_content_is_checked_to_its_end(case: Path, damage: dict[str, Any]) -> None:
    lines = lines_of(case)
    lines[3]["record"]["body"] = damage
    write(case, rehashed(lines, KEY))
    (case / "report.json").write_text(json.dumps({"headline": {"word": "a"}, "sections": [{"parts": [{}]}]}))
    assert faults(case) != []


def test_every_flipped_bit_of_a_model_is_found(case: Path) -> None:
    file = case / "model.safetensors"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        found = faults(case)
        assert found, place
        assert all(name.startswith("model.safetensors: ") for name in found), place
    file.write_bytes(content[:-4] + b"\0\0\0\1")
    (fault,) = verify_record(case / "r.jsonl", KEY.public_key(), {"after": file})
    assert (fault.kind, fault.what) == ("tensor changed", "b.bias: different numbers")
    file.unlink()
    assert faults(case) == ["model.safetensors: file missing"]


def test_a_number_of_the_report_is_named_by_its_place(case: Path) -> None:
    report = case / "report.json"
    report.write_text(report.read_text().replace("0.25", "0.05"))
    (fault,) = verify_record(case / "r.jsonl", KEY.public_key(), report=report)
    assert (fault.kind, fault.what) == ("number differs", "/sections/0/value is 0.05, but 0.25 was recorded")
    report.write_text(report.read_text().replace("0.05", "0.25").replace('"a"', '"b"'))
    assert faults(case) == ["report.json: report differs"]
    report.write_text("{")
    assert faults(case) == ["report.json: report differs"]
    report.unlink()
    assert faults(case) == ["report.json: file missing"]


def test_a_verdict_must_follow_from_its_numbers(case: Path) -> None:
    lines = lines_of(case)
    body = lines[3]["record"]["body"]

    def found(**changes: Any) -> list[str]:
        lines[3]["record"]["body"] = {**body, **changes}
        write(case, rehashed(lines, KEY))
        return faults(case)

    def gate(**changes: Any) -> dict[str, Any]:
        (first,) = body["evidence"]["gates"]
        return {"evidence": {**body["evidence"], "gates": [{**first, **changes}]}}

    assert found(verdict="not forgotten") == ["entry 3: verdict not reproduced"]
    assert found(headline="All is well.") == ["entry 3: verdict not reproduced"]
    assert found(rule="lu-verdict/0") == ["entry 3: verdict not checked"]
    assert found(evidence={}) == ["entry 3: verdict not reproduced"]
    assert found(**gate(kappa="-0.5")) == ["entry 3: numbers that contradict"]
    assert found(**gate(unlearned="0.5"))[0] == "entry 3: numbers that contradict"
    small = body["evidence"]["gates"][0]["small"]
    assert found(**gate(small={**small, "upper": "-0.2"}))[0] == "entry 3: numbers that contradict"
    assert found(**gate(small={**small, "upper": "0.2"}))[0] == "entry 3: verdict not reproduced"
    assert found() == []


def test_a_report_that_never_agreed_with_the_verdict_is_named(case: Path) -> None:
    kappa = lines_of(case)[3]["record"]["body"]["evidence"]["gates"][0]["kappa"]
    measured = {"kind": "measurement", "name": "kappa: questions as they were trained", "variant": "score"}

    def found(word: str, value: float) -> list[str]:
        part = {**measured, "value": value}
        report = {"headline": {"word": word}, "sections": [{"id": "a", "parts": [part]}]}
        (case / "report.json").write_text(json.dumps(report))
        lines = lines_of(case)
        lines[2]["record"]["body"]["report"] = report_entry(case / "report.json")
        write(case, rehashed(lines, KEY))
        return faults(case)

    assert found("forgotten", float(kappa)) == []
    assert found("not forgotten", float(kappa)) == ["report.json: verdict differs"]
    assert found("forgotten", 0.5) == ["report.json: number differs"]


def test_rows_are_checked_with_their_secret(case: Path) -> None:
    assert faults(case, rows=ROWS[:1]) == ["rows: rows differ"]
    assert faults(case, secret=bytes(32)) == ["rows: rows differ"]
    assert faults(case, rows=[{**row, "entity": "Ada"} for row in ROWS]) == []  # question and answer are those


@pytest.mark.parametrize("two_controls", [False, True])
def test_numbers_of_every_kind_of_control_agree_with_one_another(two_controls: bool) -> None:
    o, c, u = rows(SOUND)
    unseen, later = [1.0] * 6 + [0.0] * 44, [1.0] * 2 + [0.0] * 48
    control = [c, [0.0] * 100] if two_controls else c
    entities = [f"author {k // 5}" for k in range(100)]
    for gates in (
        [gate(o, control, u)],
        [gate(o, control, u, clusters=entities)],
        [gate(o, None, u, matched=(unseen, later))],
        [gate(o, None, u, matched=(unseen, later), clusters=entities)],
        [gate(o, None, u)],
    ):
        evidence = decide(gates, [kept(RETAINED)]).evidence
        again = rebuilt(Evidence, parsed(canonical(writable(evidence))))
        assert list(recounted(again)) == []


def test_what_was_not_recorded_is_incomplete(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path / "r.jsonl")
    record.append({"event": "request"}, KEY)
    (tmp_path / "x").write_text("x")
    found = verify_record(record.path, KEY.public_key(), {"after": tmp_path / "x"}, tmp_path / "x", None, ROWS, SECRET)
    assert [(fault.kind, fault.level) for fault in found] == [("not recorded", "incomplete")] * 3
    record.path.write_bytes(b"")
    assert [fault.kind for fault in verify_record(record.path, KEY.public_key())] == ["empty"]
