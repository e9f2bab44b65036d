"""The comparison of given retain rows with own answers, on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import LitCausalLM
from lightning_unlearn.benchmarks import retain as benchmark
from lightning_unlearn.benchmarks.retain import bench_retain
from lightning_unlearn.language.data import own_answers


@pytest.fixture
def writing_lm(tiny_lm: Path, tmp_path: Path) -> str:
    """A tiny model whose answers are not empty."""
    module = LitCausalLM(str(tiny_lm))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.3)
    module.save_pretrained(tmp_path / "writing")
    return str(tmp_path / "writing")


def test_each_kind_of_rows_is_run_and_measured_alike(
    writing_lm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "UNSEEN", 8)
    options: Any = {"model": writing_lm, "objectives": ["SimNPO"], "seeds": [0], "workers": 0}
    record = bench_retain(str(tmp_path / "out"), **options, steps=1, lr=1e-3, count=16)
    runs = {kind: run["metrics"] for kind, (run,) in record["runs"]["SimNPO"].items()}
    assert list(runs) == ["given", "greedy", "sampled", "none"]
    measured = {"forget", "alike", "heldout", "general", "neutral"}
    assert all(measured <= {name.rpartition("_")[0] for name in metrics} for metrics in runs.values())
    assert len({metrics["neutral_nll"] for metrics in (*runs.values(), record["before"]["metrics"])}) == 5
    assert record["answers"]["greedy"]["sha256"] != record["answers"]["sampled"]["sha256"]
    assert record["answers"]["unseen"]["asked"] == 8
    table = (tmp_path / "out" / "retain.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 1 + 4
    monkeypatch.setattr(own_answers, "generate_all", None)  # what is finished is not run again
    assert bench_retain(str(tmp_path / "out"), **options, steps=1, lr=1e-3, count=16) == record


def test_trained_and_measured_questions_are_different_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count must be at most 321"):
        bench_retain(str(tmp_path), count=322)
    with pytest.raises(ValueError, match="There are no rows"):
        bench_retain(str(tmp_path), rows=["real"])
