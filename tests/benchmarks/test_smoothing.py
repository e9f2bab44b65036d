"""The comparison of smoothing under relearning, on digits and on the tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_unlearn
from lightning_unlearn.benchmarks import grid, smoothing
from lightning_unlearn.benchmarks.entries import Setting
from lightning_unlearn.benchmarks.methods import SCENARIOS
from lightning_unlearn.benchmarks.runs import build
from lightning_unlearn.benchmarks.smoothing import bench_smoothing, score
from lightning_unlearn.benchmarks.smoothing_classifier import ClassifierCell, ClassifierSubject, unlearn
from lightning_unlearn.benchmarks.smoothing_methods import CLASSIFIERS, NONE, OBJECTIVES, STRATEGIES, settings
from lightning_unlearn.benchmarks.smoothing_sharpness import sharpness
from lightning_unlearn.benchmarks.smoothing_table import area, paired, table, verdict

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
TINY: dict[str, Any] = {
    "task": "digits",
    "objectives": ["NPO"],
    "strategies": ["none", "SAM", "WA"],
    "seeds": [0],
    "tried": 1,
    "epochs": 8,
    "sharpness_steps": 2,
    "workers": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was run once."""
    folder = tmp_path_factory.mktemp("smoothing")
    bench_smoothing(str(folder), **TINY)
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "digits.json").read_text())


def run(forgotten: list[float], before: float = 1.0, utility: float = 0.9, **fields: Any) -> dict[str, Any]:
    """A run that was made by hand."""
    curve = {"steps": list(range(len(forgotten))), "forgotten": forgotten}
    cost = {"passes": 20, "rows": 100, "seconds": 1.0, "updates": 10}
    measured = {"nll": 8.0, "forgotten": before, "rounded": 0.5, "sharpness": 0.2, "utility": {"utility": utility}}
    return {"reached": True, "relearning": curve, **cost, **measured, **fields}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_strategies_are_tuned_alike_and_stand_beside_every_objective(kind: str) -> None:
    names = ["none", "SAM", "RS", "GP", "CR", "WA", "QA"]
    assert [plan.name for plan in STRATEGIES[kind]] == names
    for objective in OBJECTIVES[kind]:
        for plan in STRATEGIES[kind]:
            found = settings(kind, objective, plan, 3)
            assert len(set(map(str, found))) == 3, plan.name
            for setting in found:
                first, *beside = build(setting.callbacks, seed=3)
                assert type(first) is getattr(lightning_unlearn, objective)
                assert len(beside) == (plan.name != NONE)
                assert all(getattr(callback, "seed", 3) == 3 for callback in beside)


def test_every_run_ends_at_the_level(record: dict[str, Any]) -> None:
    """A mean over weights too, which lags behind the live ones."""
    for strategy in record["objectives"]["NPO"].values():
        for outcome in strategy["runs"]:
            assert outcome["reached"]
            assert 8.0 <= outcome["nll"] < 9.0
            assert 0 < outcome["updates"] < record["max_updates"]
    alone, mean = (record["objectives"]["NPO"][name]["runs"] for name in (NONE, "WA"))
    assert all(b["updates"] > a["updates"] for a, b in zip(alone, mean, strict=True))


def test_the_original_knows_the_class_and_the_retrained_model_never_saw_it(record: dict[str, Any]) -> None:
    for original, retrained in zip(*record["anchors"].values(), strict=True):
        assert original["forgotten"] < 0.1
        assert max(original["relearning"]["forgotten"]) < 0.1
        assert retrained["forgotten"] == retrained["relearning"]["forgotten"][0] == 1.0
        assert original["updates"] == retrained["updates"] == original["passes"] == 0


def test_relearning_is_measured_after_each_update_and_brings_the_class_back(record: dict[str, Any]) -> None:
    for strategy in record["objectives"]["NPO"].values():
        for outcome in strategy["runs"]:
            assert outcome["relearning"]["steps"] == list(range(41))
            assert outcome["relearning"]["forgotten"][-1] < outcome["relearning"]["forgotten"][0]
            assert outcome["sharpness"] > 0


def test_sam_costs_two_passes_over_forget_rows(record: dict[str, Any]) -> None:
    """Without it, forget and retain rows share one; `NPO` reads its original model, and the first batch is checked."""
    alone, sam = (record["objectives"]["NPO"][name]["runs"][0] for name in (NONE, "SAM"))
    assert alone["passes"] == 2 * alone["updates"] + 2
    assert sam["passes"] == 4 * sam["updates"] + 2
    assert alone["seconds"] > 0


def test_the_same_command_again_runs_nothing(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(chunk: Any) -> Any:
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(grid, "_perform", fail)
    assert bench_smoothing(str(folder), **TINY) == record
    with pytest.raises(AssertionError, match="run again"):
        bench_smoothing(str(folder), **{**TINY, "nats": 9.0})


def test_tables_and_figures_are_written(folder: Path) -> None:
    text = (folder / "digits.md").read_text()
    for row in ("original", "retrained", "NPO", "NPO + SAM", "NPO + WA"):
        assert any(line.startswith(f"| {row} |") for line in text.splitlines()), row
    pytest.importorskip("matplotlib")
    assert "<svg" in (folder / "digits_NPO.svg").read_text()


def cell(**fields: Any) -> ClassifierCell:
    recipe = replace(CLASSIFIERS["digits"], epochs=1)
    return ClassifierCell(recipe=recipe, scenario=SCENARIOS["class"], seed=0, **fields)


def test_taught_rows_are_not_scored_and_the_model_is_left_as_it_was(folder: Path, record: dict[str, Any]) -> None:
    kept = [json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")]
    start = next(r["cell"]["start"] for r in kept if "start" in r["cell"] and r["cell"]["seed"] == 0)
    subject = ClassifierSubject(cell(start=start), folder)
    assert [len(labels) for _, labels in subject.taught] == [10]
    whole, taught, others = (torch.cat([x for x, _ in part]) for part in (subject.rows, subject.taught, subject.others))
    assert len(whole) == 10 + len(others)
    assert (torch.cdist(taught, others) == 0).sum() < (torch.cdist(taught, whole) == 0).sum()
    before = {name: value.clone() for name, value in subject.module.state_dict().items()}
    subject.relearned()
    subject.rounded()
    sharpness(subject.module, subject.forget_nll, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in subject.module.state_dict().items())


def test_a_run_below_the_level_says_so(folder: Path) -> None:
    kept = [json.loads(path.read_text())["cell"] for path in (folder / "runs").glob("*.json")]
    start = next(c["start"] for c in kept if "start" in c)
    setting = Setting(1e-6, OBJECTIVES["classifier"]["NPO"][1:])
    outcome = unlearn(cell(start=start, setting=setting, max_updates=2, sharpness_steps=0), folder)
    assert (outcome["reached"], outcome["updates"]) == (False, 2)
    assert "sharpness" not in outcome
    assert score(outcome) == score({"error": "nan"}) == 0.0


class Linear(lightning_unlearn.LitClassifier):
    """Weights whose forget loss is 3 x + 4 y."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self.at = nn.Parameter(torch.tensor([1.0, 2.0]))

    def nll(self) -> Tensor:
        return -(self.at * torch.tensor([3.0, 4.0])).sum()


def test_the_sharpness_of_a_slope_is_its_norm_times_the_radius() -> None:
    module = Linear()
    before = module.at.detach().clone()
    assert sharpness(module, Linear.nll, radius=0.01, steps=6) == pytest.approx(0.05, abs=1e-5)  # type: ignore[arg-type]
    assert torch.equal(module.at, before)
    with pytest.raises(ValueError, match="radius"):
        sharpness(module, Linear.nll, radius=0.0)  # type: ignore[arg-type]


def test_a_claim_holds_if_the_paired_interval_excludes_zero() -> None:
    base = [run([1.0, 0.2]), run([1.0, 0.4]), run([1.0, 0.6])]
    better = [run([1.0, 0.4]), run([1.0, 0.6]), run([1.0, 0.9])]
    gap = paired(better, base, area)
    assert gap is not None
    # Differences 0.1, 0.1, 0.15: mean 0.1167, and Student's 4.303 times 0.02887 over the root of 3.
    assert gap == pytest.approx((0.11667, 0.07172), abs=1e-4)
    assert verdict(gap, (0.0, 0.0)) == "holds"
    assert verdict((-gap[0], gap[1]), (0.0, 0.0)) == "the reverse"
    assert verdict((0.1, math.nan), (0.0, math.nan)) == "one seed"
    missed = [{**base[0], "reached": False}, {"error": "nan"}, base[2]]
    assert paired(missed, base, area) == pytest.approx((0.0, math.nan), nan_ok=True)
    assert paired(missed[:2], base[:2], area) is None


def test_the_claims_of_the_publication_are_judged_one_by_one() -> None:
    strategies = {
        NONE: {"setting": {"lr": 0.1, "callbacks": [{}]}, "runs": [run([1.0, 0.2], sharpness=0.3 + i) for i in (0, 1)]},
        "SAM": {
            "setting": {"lr": 0.1, "callbacks": [{}, {"init_args": {"rho": 0.1}}]},
            "runs": [run([1.0, 0.4], utility=0.85, sharpness=0.2 + i) for i in (0, 1)],
        },
        "RS": {
            "setting": {"lr": 0.1, "callbacks": [{}, {"init_args": {}}]},
            "runs": [run([0.9, 0.95], before=0.9) for _ in (0, 1)],
        },
    }
    anchors = {"original": [run([0.0, 0.0])] * 2, "retrained": [run([1.0, 1.0])] * 2}
    record = {"anchors": anchors, "objectives": {"NPO": strategies}, "sweep": {}}
    text = table(record)
    lines = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines()}
    assert "| NPO + SAM | +0.0 ± 0.0 | +10.0 ± 0.0 | holds |" in text
    assert "| NPO + RS | -10.0 ± 0.0 |" in text
    assert "not comparable" in text
    assert "not reproduced: RS does" in lines["SAM keeps most forgotten of all"]
    assert "not reproduced: SAM loses 5.0" in lines["utility within 3 points of the objective alone"]
    assert "not reproduced: RS" in lines["more updates never bring forgetting back"]
    assert "holds: -0.100 ± 0.000" in lines["the forget loss is flatter with SAM"]
    # Of the area between a retrained model (1) and the original (0), half of 1 and 0.4 is forgotten: 30 % is back.
    assert "| lr=0.1, rho=0.1 | 10 | 8.00 | 100.0 ± 0.0 | 40.0 | 70.0 ± 0.0 | 30 |" in text


def test_the_score_is_the_mean_of_area_and_utility() -> None:
    assert score(run([1.0, 0.5], utility=0.85)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "cifar"}, "task must be 'digits', 'mnist' or 'language', but got 'cifar'"),
        ({"objectives": ["RMU"]}, r"no objectives \['RMU'\]"),
        ({"strategies": ["SWA"]}, r"no strategies \['SWA'\]"),
        ({"seeds": [100]}, r"none in common"),
        ({"tried": -1}, "tried"),
    ],
)
def test_what_is_unknown_or_tuned_on_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench_smoothing(str(tmp_path), **{**TINY, **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_settings_are_chosen_on_other_seeds_and_the_radius_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoothing, "SWEEP", (0.01,))
    options = {**TINY, "strategies": ["none"], "seeds": [0], "tuning_seeds": [7], "tried": 2, "sweep": True}
    found = bench_smoothing(str(tmp_path), **options)
    entry = found["objectives"]["NPO"]["none"]
    scores = [tried["score"] for tried in entry["tuning"]]
    assert entry["setting"] == entry["tuning"][scores.index(max(scores))]["setting"]
    assert list(found["sweep"]["runs"]) == ["0", "0.01"]
    assert "| 0.01 |" in (tmp_path / "digits.md").read_text()


@pytest.mark.slow
def test_a_language_model_relearns_facts_that_it_is_not_taught(tiny_lm: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"objectives": ["GradDiff"], "strategies": ["none", "QA"], "seeds": [0], "workers": 0}
    options |= {"nats": 50.0, "max_updates": 3, "precision": "32-true", "sharpness_steps": 1}
    found = bench_smoothing(str(tmp_path), "language", model=str(tiny_lm), **options)
    assert set(found["anchors"]) == {"original"}
    for strategy in found["objectives"]["GradDiff"].values():
        (outcome,) = strategy["runs"]
        assert outcome["relearning"]["steps"] == [0, 1, 2, 5, 10, 20]
        assert all(0 <= share <= 1 for share in (*outcome["relearning"]["forgotten"], outcome["rounded"]))
        assert set(outcome["utility"]) == {"retain", "heldout", "general", "utility"}
        assert (outcome["reached"], outcome["updates"]) == (False, 3)
        assert outcome["passes"] >= 3


def test_a_run_below_the_level_is_said_and_the_others_keep_their_own_anchors() -> None:
    anchors = {"original": [run([0.0, 0.0])] * 2, "retrained": [run([1.0, 1.0]), run([0.5, 0.5])]}
    runs = [{**run([1.0, 1.0]), "reached": False}, run([0.25, 0.25])]
    entry = {"setting": {"lr": 0.1, "callbacks": [{}]}, "runs": runs}
    text = table({"anchors": anchors, "objectives": {"NPO": {NONE: entry}}, "sweep": {}})
    cells = [c.strip() for line in text.splitlines() if line.startswith("| NPO |") for c in line.strip("|").split("|")]
    assert cells[2] == "level not reached in 1 of 2 runs"
    assert "50" in cells  # half of what its own retrained model has not known is back
