"""The comparison of runs that end by themselves with a number of steps set by hand, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_unlearn.benchmarks.stopping import bench_stopping, table


def test_one_run_gives_both_ends_and_is_not_repeated(
    tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench() -> dict:
        return bench_stopping(str(tmp_path), str(tiny_lm), ["GradDiff"], seeds=[0], steps=4, every_n_steps=1, workers=0)

    record = bench()
    (run,) = record["methods"]["GradDiff"]
    assert [point["step"] for point in run["curve"]][: run["ended"] + 1] == list(range(run["ended"] + 1))
    assert 1 <= run["step"] <= run["ended"] <= 4
    assert {"forget_accuracy", "heldout_accuracy", "general_nll"} < run["stopped"].keys() == run["by_hand"].keys()
    same = run["stopped"]["retain_nll"] == run["by_hand"]["retain_nll"]
    assert same == (run["step"] == 4)
    text = (tmp_path / "stopping.md").read_text(encoding="utf-8")
    assert "| GradDiff, by hand |  | 4 | 4 |" in text
    capsys.readouterr()
    assert bench() == record
    assert "runs: 1 of 1 runs are finished" in capsys.readouterr().out


def test_a_run_that_diverged_is_in_the_table() -> None:
    before = {"metrics": {f"{name}_accuracy": 1.0 for name in ("forget", "retain", "heldout", "general")}}
    before["metrics"]["forget_nll"] = 0.1
    record = {"before": before, "steps": 3, "methods": {"NPO": [{"error": "the loss is not finite"}]}}
    assert "not finite in 1 runs" in table(record)
