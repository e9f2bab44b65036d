"""The reconstruction benchmark: equal budgets, claims by paired intervals, its page, and a small run of all of it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import ConvDenoiser, MoDL
from lightning_unlearn.benchmarks.reconstruction import bench_reconstruction, mean_score, robust_score, spread_over
from lightning_unlearn.benchmarks.reconstruction_report import reconstruction_report, write_reconstruction_report
from lightning_unlearn.benchmarks.reconstruction_results import ReconstructionResults
from lightning_unlearn.benchmarks.reconstruction_runs import build, fit_denoiser, fit_network
from lightning_unlearn.benchmarks.reconstruction_settings import METHODS, Conditions, Recipe, Setting
from lightning_unlearn.report.model import UnlearningReport
from tests.benchmarks.reconstruction_records import NAMES, record

TINY = Recipe(channels=4, depth=2, unrolled_steps=2, samples=2, pretraining_steps=4, tuning_steps=4, steps=5)
FEW = Conditions(
    eps=(0.05,), attack_steps=1, restarts=1, noise=(0.05,), rates=(8.0,), unrolled_steps=(1,), samples=2, rows=2,
    validation_rows=1,
)  # fmt: skip

CLAIMED = {
    "vanilla": {"clean": 0.5},
    "RS-E2E": {"attack 0.02": 0.3, "attack 0.08": 0.6},
    "SMUG": {"attack 0.02": 0.6, "attack 0.08": 1.5, "steps 16": -3.0},
    "weighted SMUG": {"attack 0.08": 1.5},
    "adversarial training": {"attack 0.08": 2.0},
}


def test_all_methods_have_twelve_settings_and_no_two_the_same() -> None:
    for name, method in METHODS.items():
        assert len(set(method.settings)) == len(method.settings) == 12, name
    grid = {(s.lr, s.sigma, s.reconstruction_weight) for s in METHODS["SMUG"].settings}
    assert grid == {(lr, sigma, w) for lr in (1e-3, 2e-3) for sigma in (0.01, 0.05) for w in (10, 30, 100)}
    assert METHODS["weighted SMUG"].settings == METHODS["SMUG"].settings


def test_fewer_settings_are_spread_over_the_list() -> None:
    settings = METHODS["SMUG"].settings
    assert spread_over(settings, 12) == list(settings)
    assert spread_over(settings, 3) == [settings[0], settings[6], settings[11]]
    assert spread_over(settings, 1) == [settings[6]]


def test_the_weight_of_the_reconstruction_is_the_inverse_of_that_of_stability() -> None:
    setting = Setting(sigma=0.03, reconstruction_weight=10)
    module = build(TINY, "smug", setting, samples=3, seed=0)
    assert module.stability_weight == pytest.approx(0.1)
    assert module.reconstruction_weight == 1
    assert module.stability_target == "label_denoised"
    assert build(TINY, "adversarial", Setting(eps=0.05), samples=3, seed=0).adversary.eps == 0.05  # type: ignore[union-attr]


def test_validation_depends_on_no_condition_of_the_test() -> None:
    limits = Conditions()
    other = replace(limits, rows=24, restarts=5, noise=(0.1,), rates=(2.0,), unrolled_steps=(4,), eps=(0.01, 0.05, 0.1))
    assert limits.of_validation() == other.of_validation()
    assert limits.of_validation().eps == (0.05,)


def test_the_score_is_the_mean_of_clean_and_attacked_psnr() -> None:
    quality = {"clean": {"psnr": [20.0, 22.0]}, "attack 0.05": {"psnr": [10.0, 12.0]}}
    assert mean_score({"validation": quality}) == 16.0
    assert mean_score({"error": "diverged"}) < -100
    assert mean_score({"validation": {"clean": {"psnr": [float("nan")]}}}) < -100


def test_robust_settings_lose_at_most_half_a_decibel_on_clean_images() -> None:
    quality = {"clean": {"psnr": [20.0, 22.0]}, "attack 0.05": {"psnr": [10.0, 12.0]}}
    assert robust_score({"validation": quality}, clean=21.5) == 11.0
    assert robust_score({"validation": quality}, clean=21.75) == -0.75
    assert robust_score({"error": "diverged"}, clean=21.0) < -100


def test_claims_are_decided_by_paired_intervals() -> None:
    results = ReconstructionResults(record(CLAIMED))
    found = {claim.text: (difference.mean, verdict) for claim, difference, verdict in results.decided()}
    mean, verdict = found["SMUG is better than RS-E2E, attack 0.08"]
    assert mean == pytest.approx(0.9, abs=0.1)
    assert verdict == "holds"
    assert found["SMUG loses at most 1 dB against vanilla, clean"][1] == "holds"
    assert found["SMUG is better than adversarial training, attack 0.08"][1] == "does not hold"
    assert found["weighted SMUG is better than SMUG, attack 0.08"][1] == "undecided"
    assert found["SMUG's lead over vanilla is larger: attack 0.08 than attack 0.02"][1] == "holds"
    assert found["SMUG's lead over vanilla is larger: steps 16 than clean"][1] == "does not hold"
    assert not any("steps 4 " in text for text in found)  # the steps of the network itself
    overall = results.verdict()
    assert overall is not None
    assert overall[0] == "holds"


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ({"SMUG": {"attack 0.08": 0.6}}, "undecided"),  # as good as RS-E2E
        ({"SMUG": {"attack 0.08": 0.3}}, "does not hold"),
        ({"vanilla": {"clean": 1.5}}, "does not hold"),  # SMUG loses too much
    ],
)
def test_the_whole_claim_falls_with_one_of_its_parts(better: dict[str, Any], verdict: str) -> None:
    overall = ReconstructionResults(record(CLAIMED | better)).verdict()
    assert overall is not None
    assert overall[0] == verdict


def test_without_its_rivals_there_is_no_verdict() -> None:
    made = record({name: CLAIMED[name] for name in ("vanilla", "SMUG")})
    results = ReconstructionResults(made)
    assert results.verdict() is None
    assert {claim.worse for claim, *_ in results.decided()} == {"vanilla"}
    assert reconstruction_report(made, ".").headline is None


def test_the_page_has_every_method_and_condition(tmp_path: Path) -> None:
    made = record(CLAIMED)
    made["methods"]["RS-E2E"]["runs"][1] = {"error": "weights that are not finite"}
    report = write_reconstruction_report(made, tmp_path)
    assert UnlearningReport.read(tmp_path) == report
    assert report.headline is None  # one of the three was not measured on all seeds
    text = (tmp_path / "report.md").read_text()
    assert "diverged on 1 of 3 seeds" in text
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in (*CLAIMED, *NAMES))
    lines = list(csv.DictReader((tmp_path / "reconstruction.csv").open()))
    assert {line["method"] for line in lines} == {*CLAIMED, "zero-filled"}
    assert sum(line["method"] == "SMUG" for line in lines) == 3 * len(NAMES) * 6
    assert sum(line["method"] == "RS-E2E" for line in lines) == 2 * len(NAMES) * 6
    assert (tmp_path / "reconstruction.svg").stat().st_size > 1000


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match=r"no methods \['magic'\]"):
        bench_reconstruction(methods=["magic"])
    with pytest.raises(ValueError, match="seeds and tuning_seeds"):
        bench_reconstruction(seeds=[100])
    with pytest.raises(ValueError, match=r"quick=True has a recipe"):
        bench_reconstruction(quick=True, recipe=TINY)
    with pytest.raises(ValueError, match="settings must be in"):
        bench_reconstruction(settings=13)
    with pytest.raises(ValueError, match="ascending"):
        Conditions(eps=(0.05, 0.02))
    with pytest.raises(ValueError, match="tuning_steps"):
        Recipe(tuning_steps=1)


def test_all_networks_of_a_seed_start_from_one_denoiser_and_see_the_same_rows(tmp_path: Path) -> None:
    denoiser = fit_denoiser(TINY, seed=1).denoiser
    torch.save(denoiser.state_dict(), tmp_path / "denoiser.pt")
    start = build(TINY, "vanilla", Setting(), 2, 1, str(tmp_path / "denoiser.pt"))
    for name, value in denoiser.state_dict().items():
        assert torch.equal(start.network.denoiser.state_dict()[name], value)
    # The training is a function of its arguments, and moves all weights.
    a, b = (fit_network(TINY, "smug", Setting(sigma=0.05, reconstruction_weight=3), 4, 1, str(tmp_path / "denoiser.pt"))
            for _ in range(2))  # fmt: skip
    for one, other, before in zip(a.parameters(), b.parameters(), start.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, before)


@pytest.mark.slow
def test_the_command_runs_resumes_and_reports(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": TINY, "conditions": FEW, "settings": 1, "seeds": [0], "workers": 0}
    made = bench_reconstruction(str(tmp_path), **options)
    assert list(made["methods"]) == list(METHODS)
    assert json.loads((tmp_path / "reconstruction.json").read_text()) == made
    for method in made["methods"].values():
        assert [run["steps"] for run in method["runs"]] == [5]  # as many updates as every other method
        assert list(method["runs"][0]["test"]) == ["clean", "attack 0.05", "noise 0.05", "acceleration 8", "steps 1"]
        assert all(len(quality["psnr"]) == 2 for quality in method["runs"][0]["test"].values())
        attacked, clean = (method["runs"][0]["test"][name]["nmse"] for name in ("attack 0.05", "clean"))
        assert all(a >= c for a, c in zip(attacked, clean, strict=True))
    assert "data:image/png" in (tmp_path / "report.html").read_text()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    next(iter(runs)).unlink()  # killed before this one had ended
    again = bench_reconstruction(str(tmp_path), **options)
    assert {path for path in runs if path.stat().st_mtime_ns != runs[path]} == {next(iter(runs))}
    assert _without_seconds(again) == _without_seconds(made)
    weights = made["methods"]["SMUG"]["runs"][0]["files"][0]
    network = MoDL(ConvDenoiser(TINY.channels, TINY.depth), TINY.unrolled_steps)
    state = torch.load(tmp_path / weights, weights_only=True)
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_seconds(inner) for name, inner in value.items() if name != "seconds"}
    return [_without_seconds(inner) for inner in value] if isinstance(value, list) else value
