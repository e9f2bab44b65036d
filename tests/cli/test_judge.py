"""Command ``judge``: what it writes, that it goes on where it was killed, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import Calibration, JSONLDialogues, JudgePrompt
from lightning_unlearn.cli import judge as command
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import main
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.rating_files import RatingFile
from lightning_unlearn.dialogue.selectors.bm25 import BM25Selector
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
    assert 0 < summary["vocab_mass"] < 1
    assert set(summary["length_bias"]) == {"value", "low", "high"}
    assert summary["parse_rate"] == 1.0
    assert summary["calibration"]["dialogues"] == 16
    calibration = Calibration.load(out / "calibration.json")
    shown = JSONLDialogues(files["pool"]).rated
    prompt = JudgePrompt(max_length=900)
    calibration.require_judge(DialogueJudge(long_lm, prompt=prompt, selector=BM25Selector(), shots=1, pool=shown))
    assert len(lines(out / "fingerprint_ratings.jsonl")) == 8
    assert calibration.fingerprint is not None
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


def chat_file(path: Path, texts: dict[str, str], **ratings: int) -> Path:
    rows = [
        {"id": name, "messages": [{"role": "user", "content": text}]}
        | ({"rating": ratings[name]} if name in ratings else {})
        for name, text in texts.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ratings_are_in_the_order_of_the_file_and_of_its_dialogues_alone(long_lm: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    run: dict[str, Any] = {"model": str(long_lm), "data": str(data), "output_dir": str(out), "device": "cpu"}
    chat_file(data, {"a": "One?", "c": "Three?"})
    command.judge(**run)
    first = {row["id"]: row["score"] for row in lines(out / "ratings.jsonl")}
    chat_file(data, {"c": "Three?", "b": "Two?", "a": "One?"}, a=3)  # another order, one more, and a rating of one
    command.judge(**run)
    rows = lines(out / "ratings.jsonl")
    assert [row["id"] for row in rows] == ["c", "b", "a"]
    assert {row["id"]: row["score"] for row in rows} | first == {row["id"]: row["score"] for row in rows}
    command.judge(**run, limit=1)
    assert lines(out / "ratings.jsonl") == rows
    chat_file(data, {"a": "Another one?"})
    with pytest.raises(ValueError, match="ratings of 3 dialogues that are not in the data"):
        command.judge(**run)
    assert lines(out / "ratings.jsonl") == rows


def test_new_weights_in_the_same_folder_are_another_judge(long_lm: Path, tmp_path: Path) -> None:
    model = shutil.copytree(long_lm, tmp_path / "model")
    data = write_jsonl(tmp_path / "d.jsonl", range(2), rated=False)
    run: dict[str, Any] = {"data": str(data), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises((OSError, ValueError)):
        command.judge(str(tmp_path / "misspelt"), **run)
    command.judge(str(model), **run)  # nothing was rated before, so the folder takes another judge
    weights = model / "model.safetensors"
    os.utime(weights, (weights.stat().st_mtime + 9,) * 2)
    with pytest.raises(ValueError, match=r"other settings: \{'model_files'"):
        command.judge(str(model), **run)


def test_a_folder_or_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "ratings.jsonl", range(2))
    before = data.read_text()
    with pytest.raises(ValueError, match="would be overwritten"):
        command.judge("m", str(data), output_dir=str(tmp_path))
    other = write_jsonl(tmp_path / "other.jsonl", range(3))
    with pytest.raises(ValueError, match=r"no settings\.json that says which judge"):
        command.judge("m", str(other), output_dir=str(tmp_path))
    assert data.read_text() == before
    with pytest.raises(ValueError, match="line 1 is no rating of this command"):
        RatingFile(data)


def test_files_that_are_there_for_their_ratings_have_some(tmp_path: Path) -> None:
    data, none = (
        write_jsonl(tmp_path / "d.jsonl", range(2)),
        write_jsonl(tmp_path / "n.jsonl", range(5, 9), rated=False),
    )
    for name in ("pool", "calibrate"):
        with pytest.raises(ValueError, match=f"--{name} needs dialogues with ratings, but none of the 4"):
            command.judge("m", str(data), output_dir=str(tmp_path / "out"), **{name: str(none)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit must be"):
        command.judge("m", str(data), output_dir=str(tmp_path / "out"), limit=0)


def test_what_would_fail_after_the_rating_is_refused_before_it(tmp_path: Path) -> None:
    data, few = write_jsonl(tmp_path / "d.jsonl", range(9)), write_jsonl(tmp_path / "few.jsonl", range(20, 25))
    for wrong, message in (
        ({"calibrate": str(few)}, "the number of rated dialogues in --calibrate must be at least 8, but got 5"),
        ({"level": 1.5}, "level must be in"),
        ({"route": "logit"}, "route must be 'logits', 'text' or 'probe'"),
        ({"examples": "bm"}, "examples must be 'fixed'"),
    ):
        with pytest.raises(ValueError, match=message):
            command.judge("m", str(data), output_dir=str(tmp_path / "out"), **wrong)  # type: ignore[arg-type]
    uss = write_uss(tmp_path / "uss", count=9) / "SGD.txt"
    with pytest.raises(ValueError, match="has the rating 5, but the task 'fed_overall'"):
        command.judge("m", str(uss), "uss", str(tmp_path / "out"), task="fed_overall")
    assert not (tmp_path / "out").exists()


def test_a_calibration_without_ratings_of_the_judge_says_so_and_keeps_the_summary(
    long_lm: Path, tmp_path: Path
) -> None:
    data, held_out = write_jsonl(tmp_path / "d.jsonl", range(2)), write_jsonl(tmp_path / "c.jsonl", range(9, 18))
    run: dict[str, Any] = {"output_dir": str(tmp_path / "out"), "calibrate": str(held_out), "route": "text"}
    with pytest.raises(ValueError, match=r"gave a rating for 0 of the 9 dialogues in --calibrate.*Use --route logits"):
        command.judge(str(long_lm), str(data), **run, max_new_tokens=1, device="cpu")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["parse_rate"] == 0


def test_a_dialogue_without_ratings_is_known_again_where_it_has_some(tmp_path: Path) -> None:
    data = chat_file(tmp_path / "d.jsonl", {"a": "One?"})
    pool = chat_file(tmp_path / "p.jsonl", {"x": "One?", "y": "Two?"}, x=4, y=2)
    with pytest.raises(ValueError, match="Dialogue 'x' of --pool is also in --data"):
        command.judge("m", str(data), output_dir=str(tmp_path / "out"), pool=str(pool))


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
    text = [
        "--model.init_args.extractor=lightning_unlearn.TextExtractor",
        "--model.init_args.extractor.init_args.max_new_tokens=1",
    ]
    for more, found in ((), float), (text, type(None)):
        UnlearnCLI(["predict", *run, *more, f"--ckpt_path={checkpoint}"])
        rows = lines(tmp_path / "predictions.jsonl")
        assert [row["id"] for row in rows] == [f"SGD-{i}" for i in range(20)]
        assert all(isinstance(row["score"], found) for row in rows)
        (tmp_path / "predictions.jsonl").unlink()  # predict does not write over files
