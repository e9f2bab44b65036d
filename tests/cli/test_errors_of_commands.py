"""Errors of a command: one sentence, last, where the library has foreseen it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.cli import main as module


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.argv", ["lightning-unlearn", *words])
    with pytest.raises(SystemExit) as done:
        module.run()
    return str(done.value.code)


def test_a_wrong_folder_file_or_column_ends_in_one_sentence(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"customer": "Ada"}) + "\n")
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]
    base = [
        "fit",
        "--config=npo",
        "--model=lightning_unlearn.LitCausalLM",
        "--data=lightning_unlearn.LanguageDataModule",
    ]
    for options, message in {
        ("--model.init_args.model=./none", "--data.init_args.forget=rows.jsonl"): "There is no folder ./none",
        (f"--model.init_args.model={tiny_lm}", "--data.init_args.forget=none.csv"): "There is no file none.csv",
        (f"--model.init_args.model={tiny_lm}", "--data.init_args.forget=rows.jsonl"): "has columns ['customer']",
    }.items():
        said = ended([*base, *options, "--data.init_args.retain=rows.jsonl", *quiet], monkeypatch)
        assert said.startswith("lightning-unlearn: ")
        assert message in said
        assert "\n" not in said
        assert "Traceback" not in capsys.readouterr().err
    assert "There is nothing to write" in ended(["export", "--ckpt_path=x.ckpt"], monkeypatch)


def test_errors_of_others_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        json.loads("{")

    monkeypatch.setattr(module, "main", fails)
    with pytest.raises(json.JSONDecodeError):
        module.run()
