"""The benchmark of dialogue judges on a tiny model and synthetic files; what decides a finding."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn.benchmarks import dialogue, dialogue_runs
from lightning_unlearn.benchmarks.dialogue import ENTRIES, bench_dialogue
from lightning_unlearn.benchmarks.dialogue_figure import calibration_bins, judge_figure
from lightning_unlearn.benchmarks.dialogue_findings import agreement, decided, findings, pooled
from lightning_unlearn.benchmarks.dialogue_runs import DataCell, JudgeCell, LoRASetting, UpdateBatches, judged, split
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.prompt import JudgePrompt
from tests.dialogue.uss_files import write_uss

SMALL: dict[str, Any] = {
    "test": 16,
    "train": 8,
    "epochs": 1,
    "workers": 0,
    "precision": "32-true",
    "max_length": 640,
    "last_layers": 1,
}


def outcome(scores: list[float | None], human: list[float]) -> dict[str, Any]:
    labels = [None if score is None else str(round(score)) for score in scores]
    ids = [str(i) for i in range(len(scores))]
    return {"scores": scores, "labels": labels, "human": [[h] for h in human], "ids": ids}


def test_every_entry_runs_once_and_is_decided(long_lm: Path, tmp_path: Path) -> None:
    data = write_uss(tmp_path / "uss", ("SGD", "MWOZ"), 24)
    entries = ["zero-shot", "BM25 4-shot", "random 4-shot", "analysis first", "rating first", "fine-tuned, soft labels"]
    entries += ["linear probe", "linear probe, known-bad"]
    run = {**SMALL, "output_dir": str(tmp_path / "out"), "models": [str(long_lm)], "max_new_tokens": 2}
    record = bench_dialogue(str(data), entries=entries[:1], subsets=["SGD"], **run)
    assert [row["finding"] for row in record["findings"]] == []
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    record = bench_dialogue(str(data), entries=entries, **run)
    for name, written in finished.items():
        assert (tmp_path / "out" / "runs" / name).stat().st_mtime_ns == written
    assert record["runs"]["SGD"].keys() == record["runs"]["MWOZ"].keys()
    assert len(record["runs"]["SGD"]) == 3 + len(entries)
    ridge = record["runs"]["SGD"]["TF-IDF + ridge"]
    assert ridge["agreement"]["spearman"][0] > 0.6  # the last message tells the rating
    assert {len(run["scores"]) for runs in record["runs"].values() for run in runs.values()} == {16}
    tuned = record["runs"]["SGD"][f"{long_lm.name}: fine-tuned, soft labels"]
    assert tuned["scores"] != record["runs"]["SGD"][f"{long_lm.name}: zero-shot"]["scores"]
    found = {row["finding"] for row in record["findings"]}
    assert found == {
        "selected examples > random ones",
        "analysis first > rating first",
        "fine-tuned > as it is",
        "fine-tuned > TF-IDF ridge",
        "linear probe > TF-IDF ridge",
    }
    shown = {name.partition(": ")[2]: run.get("examples", 0) for name, run in record["runs"]["SGD"].items()}
    assert shown["zero-shot"] == shown["fine-tuned, soft labels"] == 0
    assert shown["BM25 4-shot"] == shown["random 4-shot"] == 4
    table = (tmp_path / "out" / "dialogue.md").read_text()
    assert "USS-MWOZ" in table
    saved = [judge for judge in record["judges"] if judge["subset"] == "SGD"]
    names = ("fine-tuned, soft labels", "linear probe", "linear probe, known-bad")
    assert [judge["name"] for judge in saved] == [f"{long_lm.name}: {name}" for name in names]
    _, test = split(DataCell(seed=0, path=str(data), data_sha256="", subset="SGD", test=16, train=8))
    for kept in saved:
        assert kept["folder"] in table
        place, run_of = tmp_path / "out" / kept["folder"], record["runs"]["SGD"][kept["name"]]
        rho = run_of["agreement"]["spearman"][0]
        calibration = Calibration.load(place / "calibration.json")
        assert calibration.spearman.value == pytest.approx(rho)
        judge = DialogueJudge(str(place), prompt=JudgePrompt(max_length=640))
        again = [rating.score for rating in judge.rate(test)]
        assert again == pytest.approx(run_of["scores"], abs=1e-4)  # what was saved is what rated
        assert calibration.fingerprint is not None
        calibration.require_judge(judge)
    assert json.loads((tmp_path / "out" / "dialogue.json").read_text())["test"] == 16
    assert (tmp_path / "out" / f"dialogue_{long_lm.name}.svg").exists()


def test_test_and_training_dialogues_have_none_in_common(tmp_path: Path) -> None:
    cell: Any = {"path": str(write_uss(tmp_path)), "data_sha256": "", "subset": "SGD", "test": 10, "train": 30}
    pool, test = split(DataCell(seed=0, **cell))
    assert (len(pool), len(test)) == (30, 10)
    assert not {part.id for part in pool} & {part.id for part in test}
    assert [part.id for part in split(DataCell(seed=0, **cell))[1]] == [part.id for part in test]
    assert [part.id for part in split(DataCell(seed=1, **cell))[1]] != [part.id for part in test]
    with pytest.raises(ValueError, match="more than the 40 dialogues of SGD"):
        split(DataCell(seed=0, **{**cell, "train": 31}))


def test_an_update_has_random_rows_in_batches_of_like_lengths() -> None:
    lengths = [100 - row for row in range(22)]
    epochs = [list(UpdateBatches(lengths, update=8, together=4, seed=0)) for _ in range(2)]
    assert epochs[0] == epochs[1]  # of two samplers with one seed
    batches = epochs[0]
    assert [len(rows) for rows in batches] == [4, 4, 4, 4, 4, 2]
    assert sorted(row for rows in batches for row in rows) == list(range(22))
    for first, second in (batches[:2], batches[2:4], batches[4:]):
        assert [*first, *second] == sorted([*first, *second], key=lambda row: lengths[row])
    sampler = UpdateBatches(lengths, update=8, together=4, seed=0)
    assert len(sampler) == 6
    assert list(sampler) == batches != list(sampler)  # each epoch in another order


@pytest.mark.parametrize(("speed", "chosen"), [(2.0, "bf16-mixed"), (1.2, "32-true")])
def test_the_precision_is_chosen_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float, chosen: str
) -> None:
    monkeypatch.setattr("lightning_unlearn.audit.precision.bf16_speed", lambda: speed)
    assert dialogue._precision("auto", tmp_path) == chosen
    assert dialogue._precision("16-mixed", tmp_path) == "16-mixed"
    (tmp_path / "a.json").write_text(json.dumps({"cell": {"kind": "ridge"}}))
    (tmp_path / "b.json").write_text(json.dumps({"cell": {"precision": "bf16-true"}}))
    assert dialogue._precision("auto", tmp_path) == "bf16-true"


def test_a_judge_that_is_not_fine_tuned_rates_in_bf16_as_in_fp32(long_lm: Path, tmp_path: Path) -> None:
    cell: Any = {
        "seed": 0,
        "path": str(write_uss(tmp_path)),
        "data_sha256": "",
        "subset": "SGD",
        "test": 16,
        "train": 8,
    }
    cells = [JudgeCell(**cell, model=str(long_lm), precision=precision) for precision in ("32-true", "bf16-mixed")]
    types = [{weight.dtype for weight in dialogue_runs._judge(part, []).parameters()} for part in cells]
    assert types == [{torch.float32}, {torch.bfloat16}]
    tuned = dialogue_runs._judge(replace(cells[1], lora=LoRASetting()), [])
    assert {weight.dtype for weight in tuned.parameters()} == {torch.float32}
    scores = [judged(part, tmp_path)["scores"] for part in cells]
    assert scores[0] != scores[1]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


def test_findings_hold_where_the_interval_of_the_mean_is_above_0() -> None:
    draw = torch.Generator().manual_seed(0)
    human = (torch.randint(1, 6, (200,), generator=draw)).double()
    noise = torch.randn(2, 200, generator=draw, dtype=torch.float64)
    good, bad = (human + 0.3 * noise[0]).tolist(), (human + 6 * noise[1]).tolist()
    runs = {
        "m: fine-tuned, soft labels": outcome(good, human.tolist()),
        "m: zero-shot": outcome(bad, human.tolist()),
        "TF-IDF + ridge": outcome(good, human.tolist()),
        "m: BM25 4-shot": outcome([3.0] * 200, human.tolist()),
        "m: random 4-shot": outcome(bad, human.tolist()),
    }
    rows = {row["finding"]: row for row in findings({"SGD": runs, "MWOZ": runs}, ("m",))}
    assert rows["fine-tuned > as it is"]["decided"] == "holds"
    assert rows["fine-tuned > TF-IDF ridge"]["mean"] == [0.0, 0.0, 0.0]
    assert rows["fine-tuned > TF-IDF ridge"]["decided"] == "open"
    assert rows["selected examples > random ones"]["decided"].startswith("no correlation")
    # Two subsets: the half width of their mean is that of one over the root of two.
    one, mean = rows["fine-tuned > as it is"]["differences"]["SGD"], rows["fine-tuned > as it is"]["mean"]
    assert (mean[2] - mean[1]) == pytest.approx((one[2] - one[1]) / math.sqrt(2))


def test_decisions() -> None:
    assert [decided(Interval(0, *ends)) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        "holds",
        "reversed",
        "open",
    ]
    assert pooled([Interval(0.3, 0.0, 0.6)]) == Interval(0.3, 0.0, 0.6)


def test_a_judge_that_writes_no_rating_has_no_agreement() -> None:
    found = agreement(outcome([None] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]))
    assert all(math.isnan(three.value) for three in found.values())


def test_bins_hold_as_many_dialogues_each_and_their_means() -> None:
    scores = torch.arange(20.0).flip(0)
    points = calibration_bins(scores, scores * 2, 5)
    assert points == [(1.5, 3.0), (5.5, 11.0), (9.5, 19.0), (13.5, 27.0), (17.5, 35.0)]
    with pytest.raises(ValueError, match="at least 16 ratings"):
        judge_figure("a", [outcome([1.0] * 4, [1.0] * 4)])


def test_wrong_arguments_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one file SGD\.txt of USS"):
        bench_dialogue(str(tmp_path))
    with pytest.raises(ValueError, match="There are no entries"):
        bench_dialogue(str(write_uss(tmp_path)), entries=["five-shot"])
    with pytest.raises(ValueError, match="different names"):
        bench_dialogue(str(tmp_path), models=["a/x", "b/x"])
    assert {"zero-shot", "random 4-shot", "BM25 4-shot", "dense 4-shot"} < set(ENTRIES)
