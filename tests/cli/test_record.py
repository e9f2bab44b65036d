"""The commands of records, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lightning_unlearn import AuditRecord, decide, load_private_key, verdict_entry
from lightning_unlearn.cli.main import main
from tests.audit.sets import RETAINED, SOUND, kept, result_of


@pytest.fixture
def case(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A record of a request, two models, a report and a verdict, made by the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_UNLEARN_KEY_PASSWORD", "a password")
    shutil.copytree(tiny_lm, "before")
    shutil.copytree(tiny_lm, "after")
    Path("rows.jsonl").write_text(json.dumps({"question": "Who is Ada Byron?", "answer": "A countess."}) + "\n")
    Path("report.json").write_text(json.dumps({"kappa": 0.02}))
    main(["record", "key", "--private_key=key.pem", "--public_key=pub.pem"])
    signed = ["--record=r.jsonl", "--private_key=key.pem"]
    request = ["--received_at=2026-01-31", "--forget=rows.jsonl", "--secret=case.secret", "--request_id=2026-17"]
    main(["record", "create", *signed, *request])
    main(["record", "append", *signed, "--before=before", "--after=after"])
    main(["record", "append", *signed, "--report=report.json"])
    key = load_private_key("key.pem", "a password")
    AuditRecord("r.jsonl").append(
        {"event": "verdict", **verdict_entry(decide([result_of(SOUND)], [kept(RETAINED)]))}, key
    )
    assert "is to be answered by 2026-03-02" in capsys.readouterr().out
    return tmp_path


ALL = ["--public_key=pub.pem", "--model=after", "--before=before", "--report=report.json", "--forget=rows.jsonl"]
ALL += ["--secret=case.secret"]


def verified(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    try:
        main(["verify-record", "--record=r.jsonl", *words])
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_record_holds_with_all_of_its_files(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = AuditRecord("r.jsonl").head
    assert verified([*ALL, f"--expect_head={head}"], capsys) == (0, "r.jsonl is intact.\n")
    code, said = verified(ALL, capsys)
    assert code == 0
    assert "Without --expect_head, the check can't see" in said
    content = Path("r.jsonl").read_text()
    assert "Ada" not in content
    assert "countess" not in content


def test_the_exit_code_tells_changed_from_unchecked(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified([], capsys)
    assert code == 2
    assert "not checked: signatures" in said
    assert verified(["--public_key=none.pem"], capsys)[0] == 2
    assert verified(["--public_key=pub.pem", "--expect_head=3"], capsys)[0] == 2
    file = Path("after/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, said = verified(ALL, capsys)
    assert code == 1
    assert "after: tensor changed: " in said
    assert "r.jsonl is not intact: 1 faults." in said


def test_a_card_anchors_the_record(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("after/README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    main(["export-card", "--record=r.jsonl", "--model=after", "--base_model=org/tiny"])
    card = ModelCard.load("after/README.md")
    said = card.data.to_dict()["unlearning"]
    assert (said["verdict"], card.data.license, card.data.base_model) == ("forgotten", "mit", "org/tiny")
    assert "Ada" not in card.content
    assert verified([*ALL, f"--expect_head={said['record_head']}"], capsys)[0] == 0
    lines = Path("r.jsonl").read_bytes().splitlines(keepends=True)
    Path("r.jsonl").write_bytes(b"".join(lines[:-1]))
    code, text = verified([*ALL, f"--expect_head={said['record_head']}"], capsys)
    assert code == 1
    assert "entry 3: cut tail" in text


def test_entries_of_a_file_are_signed_later(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("method.json").write_text('{"event": "method", "name": "NPO", "beta": 0.1}')
    main(["record", "append", "--record=r.jsonl", "--body=method.json"])
    assert AuditRecord("r.jsonl").entries[-1].body["beta"] == "0.1"
    assert verified(ALL, capsys)[1].startswith("entry 4: missing signature")
    main(["record", "sign", "--record=r.jsonl", "--private_key=key.pem"])
    assert "Signed 1 of 5 entries" in capsys.readouterr().out
    assert verified(ALL, capsys)[0] == 0


def test_what_can_not_be_done_is_said(case: Path) -> None:
    signed = ["--record=r.jsonl", "--private_key=key.pem"]
    for words, message in {
        ("record", "create", *signed, "--received_at=2026-01-31"): "exists. Add to it",
        ("record", "create", "--record=new.jsonl", "--received_at=January"): "not a day such as 2026-01-31",
        ("record", "create", "--record=new.jsonl", "--received_at=2026-01-31", "--forget=rows.jsonl"): "Give --secret",
        ("record", "append", *signed): "There is nothing to add",
        ("record", "append", "--record=none.jsonl", "--report=report.json"): "There is no record none.jsonl",
        ("record", "key", "--private_key=key.pem", "--public_key=other.pem"): "a key that is written over is lost",
    }.items():
        with pytest.raises((ValueError, OSError), match=message):
            main(list(words))
    for text, message in {
        '{"event": "a", "b": NaN}': "no place for nan",
        "[1]": "a JSON object",
        "{": "not JSON",
    }.items():
        Path("body.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            main(["record", "append", *signed, "--body=body.json"])
    assert not Path("new.jsonl").exists()


def test_an_extended_request_is_due_after_three_months(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--received_at=2026-01-31", "--extended=many copies", "--holidays=[2026-04-30]"]
    main(["record", "create", f"--record={tmp_path / 'r.jsonl'}", *words])
    said = capsys.readouterr().out
    assert "is to be answered by 2026-05-01" in said
    assert "told of the extension and its reason by 2026-03-02" in said
