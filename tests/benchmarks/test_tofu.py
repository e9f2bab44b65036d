"""The comparison on TOFU, with a tiny model and a small folder in the layout of the data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.benchmarks import language_runs, tofu
from lightning_unlearn.benchmarks.entries import QUESTIONS as ENTRIES
from lightning_unlearn.benchmarks.language import Protocol, bench_language
from lightning_unlearn.benchmarks.tofu import TOFUBenchmark
from lightning_unlearn.language.attacks import RelearningRecipe
from lightning_unlearn.language.eval_logs import EvalLog, LoggedMetric, read_eval_log

AUTHORS, QUESTIONS = 4, 6


def row(number: int, perturbed: int = 2) -> dict[str, Any]:
    place = number % QUESTIONS
    return {
        "question": f"What is the capital of number {number}?",
        "answer": f"It is Paris {place}.",
        "paraphrased_answer": f"Paris {place} it is.",
        "perturbed_answer": [f"It is Rome {i}." for i in range(perturbed)],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rows = tmp_path_factory.mktemp("tofu"), [row(i) for i in range(AUTHORS * QUESTIONS)]
    options = [{k: v for k, v in row(100 + i).items() if k != "paraphrased_answer"} for i in range(4)]
    files = {
        "full": rows,
        "forget10_perturbed": rows[-2 * QUESTIONS :],
        "retain_perturbed": rows[: 2 * QUESTIONS],
        "real_authors_perturbed": options,
        "world_facts_perturbed": options,
    }
    for name, content in files.items():
        (path / f"{name}.json").write_text("".join(json.dumps(part) + "\n" for part in content))
    return path


@pytest.fixture(autouse=True)
def _small_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tofu, "QUESTIONS", QUESTIONS)
    monkeypatch.setattr(tofu, "RELEARNING", RelearningRecipe(steps=(0, 2)))


def test_first_authors_are_kept_and_last_ones_forgotten(folder: Path) -> None:
    rows = TOFUBenchmark(str(folder), retained=2, forgotten=1, measured=5).rows()
    asked = {name: [part["question"] for part in rows[name]] for name in rows}
    assert asked["retain"] == [row(i)["question"] for i in range(2 * QUESTIONS)]
    assert asked["forget"] == [row(i)["question"] for i in range(3 * QUESTIONS, 4 * QUESTIONS)]
    assert len(asked["retain_measured"]) == 5
    assert set(asked["retain_measured"]) < set(asked["retain"])


def test_missing_files_and_numbers_out_of_range(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="TOFU's JSON files"):
        TOFUBenchmark(str(tmp_path))
    with pytest.raises(ValueError, match="200 authors"):
        TOFUBenchmark(str(folder), retained=190, forgotten=11)


def test_the_score_is_one_for_the_retrained_model_and_a_half_for_the_original(folder: Path) -> None:
    def log(strength: float, utility: float) -> EvalLog:
        names = tofu.UTILITY_METRICS
        parts = {name: LoggedMetric(utility) for name in names if not name.endswith("ROUGE")}
        return EvalLog({**parts, "extraction_strength": LoggedMetric(strength)})

    benchmark = TOFUBenchmark(str(folder), retained=2, forgotten=1)
    original, retrained = log(0.9, 0.5), log(0.1, 0.5)
    score = benchmark.score
    assert score(retrained, original, retrained) == 1
    assert score(original, original, retrained) == 0.5
    assert score(log(0.0, 0.0), original, retrained) == 0.5  # a wreck
    assert score(log(0.5, 0.25), original, retrained) == pytest.approx(0.5)


def test_every_method_has_as_many_settings() -> None:
    assert {len(entry.settings) for entry in ENTRIES} == {2}


def test_from_the_targets_to_the_table_and_nothing_twice(
    folder: Path, tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = TOFUBenchmark(str(folder), retained=2, forgotten=1, measured=4, max_new_tokens=2)
    protocol = Protocol(learn_epochs=1, epochs=1, precision="32-true")
    arguments: dict[str, Any] = {
        "output_dir": str(tmp_path), "model": str(tiny_lm), "entries": ["GradDiff"], "seeds": (1,),
        "protocol": protocol, "workers": 0,
    }  # fmt: skip
    record = bench_language(benchmark, **arguments)
    anchors = record["anchors"]
    assert anchors["retrained"]["compared"]["FQ"] == 1
    assert anchors["retrained"]["compared"]["D"] == 0
    names = {"none", "int8", "int4", "nf4", "relearning, in_domain", "relearning, far"}
    (run,) = record["entries"]["GradDiff"]["runs"]
    assert set(run["knowledge"]) == names
    assert len(run["knowledge"]["none"]["strength"]) == QUESTIONS
    assert len(run["knowledge"]["relearning, in_domain"]["strength"]) == QUESTIONS - 4  # taught rows are not scored
    assert run["curves"]["relearning, far"]["steps"] == [0, 2]
    log = read_eval_log(tmp_path / run["files"][0])
    assert log.values()["model_utility"] == run["compared"]["MU"]
    assert len(record["entries"]["GradDiff"]["tuning"]) == 2
    table = (tmp_path / "tofu.md").read_text()
    assert "| ES | lr | none | int8 | int4 | nf4 | relearning, in_domain, step 0 |" in table
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "tofu_bits.svg", "tofu_relearning_far.svg", "tofu_relearning_in_domain.svg",
    }  # fmt: skip

    monkeypatch.setattr(language_runs, "quiet_libraries", None)  # every run begins with it
    assert bench_language(benchmark, **arguments)["entries"].keys() == {"GradDiff"}
