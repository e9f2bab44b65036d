"""Command ``judge``: what it writes, that it goes on where it was killed, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn.cli import judge as command
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import main
from lightning_unlearn.dialogue.judge import DialogueJudge
from tests.dialogue.uss_files import write_jsonl, write_uss


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ratings_agreement_and_calibration_from_the_command_line(
    long_lm: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", names) for name, names in (
        ("data", range(12)), ("pool", range(20, 28)), ("calibrate", range(40, 56)),
    )}  # fmt: skip
    main(
        ["judge", f"--model={long_lm}", f"--output_dir={out}", "--shots=1", "--max_length=900", "--device=cpu",
         *(f"--{name}={path}" for name, path in files.items())]
    )  # fmt: skip
    rows, calibrated = lines(out / "ratings.jsonl"), lines(out / "calibrated.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in calibrated] == [str(i) for i in range(12)]
    assert all(1 <= row["score"] <= 5 and len(row["probs"]) == 5 for row in rows)
    assert all(row["low"] <= row["value"] <= row["high"] for row in calibrated)
    summary = json.loads((out / "summary.json").read_text())
    assert {"spearman", "mae", "f1_macro"} < set(summary["agreement"])
    assert summary["parse_rate"] == 1.0
    assert summary["calibration"]["dialogues"] == 16
    assert summary["settings"]["examples"] == "bm25"
    assert "spearman:" in capsys.readouterr().out


def test_a_killed_run_rates_what_is_missing(
    long_lm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rated: list[str] = []
    rate = DialogueJudge.rate

    def counting(self: DialogueJudge, dialogues: Any) -> Any:
        if len(rated) >= 4:
            raise KeyboardInterrupt
        rated.extend(dialogue.id for dialogue in dialogues)
        return rate(self, dialogues)

    monkeypatch.setattr(DialogueJudge, "rate", counting)
    run: dict[str, Any] = {"model": str(long_lm), "data": str(write_jsonl(tmp_path / "d.jsonl", range(8), rated=False))}
    run |= {"output_dir": str(tmp_path / "out"), "batch_size": 2, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        command.judge(**run)
    path = tmp_path / "out" / "ratings.jsonl"
    assert len(lines(path)) == 4
    with path.open("a") as file:
        file.write('{"id": "half')
    monkeypatch.setattr(DialogueJudge, "rate", lambda self, ds: rated.extend(d.id for d in ds) or rate(self, ds))
    summary = command.judge(**run)
    assert rated == [str(i) for i in range(8)]
    assert [row["id"] for row in lines(path)] == rated
    assert "agreement" not in summary  # nobody has rated them
    monkeypatch.setattr(DialogueJudge, "__init__", None)  # a finished run makes no judge
    command.judge(**run)
    with pytest.raises(ValueError, match=r"other settings: \{'mode': \('score_only', 'rating_first'\)\}"):
        command.judge(**run, mode="rating_first")


def test_what_is_rated_is_never_shown_or_calibrated_to(tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "a.jsonl", range(8)))
    for other in ("pool", "calibrate"):
        shared = str(write_jsonl(tmp_path / "b.jsonl", range(7, 20)))
        with pytest.raises(ValueError, match=f"Dialogue '7' of --{other} is also in --data"):
            command.judge("m", data, output_dir=str(tmp_path / "out"), **{other: shared})  # type: ignore[arg-type]


def test_a_file_of_uss_and_text(long_lm: Path, tmp_path: Path) -> None:
    data = write_uss(tmp_path, count=4) / "SGD.txt"
    summary = command.judge(
        str(long_lm), str(data), "uss", str(tmp_path / "out"), route="text", max_new_tokens=2, limit=3, device="cpu"
    )
    assert summary["dialogues"] == 3
    assert summary["parse_rate"] < 1  # random weights write no rating
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["route"] == "text"


def test_a_judge_is_fine_tuned_and_tested_from_the_command_line(
    long_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uss(tmp_path / "uss", count=20)
    run = ["--config", "examples/judge_uss.yaml", f"--model.init_args.model={long_lm}"]
    run += [f"--data.init_args.path={data}", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    run += ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    cli = UnlearnCLI(["fit", *run, "--trainer.max_steps=2", "--trainer.accumulate_grad_batches=1"])
    checkpoint = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state
    assert all("lora_" in name for name in state)
    UnlearnCLI(["test", *run, f"--ckpt_path={checkpoint}"])
    assert "test/mae" in capsys.readouterr().out
