"""The comparison on classifiers, on digits and a small perceptron."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import lightning_unlearn
from lightning_unlearn import LitClassifier, classification
from lightning_unlearn.benchmarks import classification as module
from lightning_unlearn.benchmarks import grid, methods, runs
from lightning_unlearn.benchmarks.classification import TrainCell, UnlearnCell, bench_classification
from lightning_unlearn.benchmarks.methods import (
    ABLATION,
    ALPHAS,
    METHODS,
    SCENARIOS,
    TASKS,
    UNTUNED,
    WEIGHTS,
    Recipe,
    Scenario,
    methods_of,
)
from lightning_unlearn.benchmarks.models import MLP, ResNet8, TextTransformer
from lightning_unlearn.benchmarks.runs import build

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
NOT_COMPARED = {
    "Amnesiac": "needs a ledger that training wrote",
    "AmnesiacLedger": "is no method",
    "ClassifierMonitor": "measures",
    "ClassifierObjective": "is no method",
    "Retrain": "is what the others are compared with",
    "Rewind": "chooses an epoch by rows that no other method sees",
}
TINY: dict[str, Any] = {
    "task": "digits",
    "scenarios": ["class"],
    "methods": ["FineTune", "UGradSL"],
    "tuning_seeds": [9],
    "seeds": [0, 1],
    "ablation_seeds": [],
    "epochs": 2,
    "workers": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was run once, with a grid of alpha and p of two by two."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "ALPHAS", ALPHAS[:2])
        patch.setattr(methods, "WEIGHTS", WEIGHTS[:2])
        corner = [s for i, s in enumerate(ABLATION["UGradSL"]) if i in (0, 1, len(ALPHAS), len(ALPHAS) + 1)]
        patch.setattr(methods, "ABLATION", {"UGradSL": tuple(corner)})
        bench_classification(str(folder), **{**TINY, "ablation_seeds": [0]})
    return folder


def record(folder: Path) -> Any:
    return json.loads((folder / "digits.json").read_text())


def test_every_method_has_an_entry_and_all_are_tuned_alike() -> None:
    compared = {method.name for method in METHODS}
    assert not compared & set(NOT_COMPARED)
    public = {name: getattr(classification, name) for name in classification.__all__}
    callbacks = {name for name, cls in public.items() if isinstance(cls, type) and issubclass(cls, Callback)}
    assert callbacks - compared == set(NOT_COMPARED)
    assert {len(method.settings) for method in METHODS} == {6}
    for method in METHODS:
        assert len({json.dumps(asdict(setting), sort_keys=True) for setting in method.settings}) == 6, method.name
        for setting in method.settings:
            for callback, built in zip(
                setting.callbacks, build(setting.callbacks, seed=3, forget_class=4), strict=True
            ):
                assert type(built) is getattr(lightning_unlearn, callback["class_path"].rpartition(".")[2])
                assert getattr(built, "seed", 3) == 3
                assert getattr(built, "forget_class", 4) == 4


@pytest.mark.parametrize("task", TASKS)
def test_a_task_tunes_its_methods_alike(task: str) -> None:
    compared = methods_of(task)
    assert {len(method.settings) for method in compared.values()} == {6}
    assert all(name == method.name for name, method in compared.items())
    assert UNTUNED.get(task, {}).keys() <= compared.keys()


def test_ascent_and_ugradsl_read_equally_many_rows_of_mnist_1d() -> None:
    """200 forget rows in four batches, each with 64 retain rows in UGradSL: within 6 %, in favour of ascent."""
    compared = methods_of("mnist1d")
    (ascent,) = {setting.epochs * 200 for setting in compared["GradientAscent"].settings}
    for name in ("UGradSL", "UGradSL, alpha=0"):
        (read,) = {setting.epochs * (200 + 4 * 64) for setting in compared[name].settings}
        assert 1 <= ascent / read < 1.06


def test_a_method_that_is_not_tuned_runs_with_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(UNTUNED["mnist1d"]["UGradSL"], epochs=1)
    assert (plain.lr, plain.clip, plain.callbacks[0]["init_args"]) == (TASKS["mnist1d"].lr, None, {})
    monkeypatch.setattr(methods, "UNTUNED", {"digits": {"UGradSL": plain, "SCRUB": plain}})
    monkeypatch.setattr(methods, "METHODS", [replace(m, settings=m.settings[:1]) for m in METHODS])
    options = {**TINY, "methods": ["UGradSL"], "seeds": [0]}
    scenario = bench_classification(str(tmp_path), **options)["scenarios"]["class"]
    assert scenario["untuned"].keys() == {"UGradSL"}
    assert "| UGradSL, untuned |" in (tmp_path / "digits.md").read_text()


def test_the_grid_is_in_the_order_that_it_is_drawn_in() -> None:
    for settings in ABLATION.values():
        drawn = [s.callbacks[0]["init_args"] for s in settings]
        assert drawn == [{"alpha": alpha, "p": p} for p in WEIGHTS for alpha in ALPHAS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "cifar"}, "task must be 'mnist', 'mnist1d', 'digits', 'images' or 'text', but got 'cifar'"),
        ({"methods": ["FineTune", "NPO"]}, r"no methods \['NPO'\] of task 'digits'"),
        ({"task": "text", "methods": ["UNSIR"]}, r"no methods \['UNSIR'\] of task 'text'"),
        ({"scenarios": ["all"]}, r"no scenarios \['all'\]"),
        ({"tuning_seeds": [1]}, r"none in common, but got \[0, 1\] and \[1\]"),
        ({"seeds": []}, "must both be given"),
        ({"tuning_seeds": []}, "must both be given"),
    ],
)
def test_what_is_unknown_or_tuned_on_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench_classification(str(tmp_path), **{**TINY, **arguments})
    assert not list(tmp_path.iterdir())


def test_the_setting_with_the_smallest_gap_is_the_one_that_runs(folder: Path) -> None:
    for name, found in record(folder)["scenarios"]["class"]["methods"].items():
        gaps = [tried["runs"][0]["gap"] for tried in found["tuning"]]
        assert [tried["score"] for tried in found["tuning"]] == [-gap for gap in gaps]
        assert len(gaps) == 6, name
        assert found["setting"] == found["tuning"][gaps.index(min(gaps))]["setting"]
        assert len(found["runs"]) == 2


def test_gaps_and_tow_are_those_of_the_metrics_beside_them(folder: Path) -> None:
    scenario = record(folder)["scenarios"]["class"]
    references = scenario["retrained"]
    for measured in (scenario["original"], references, *(m["runs"] for m in scenario["methods"].values())):
        for run, reference in zip(measured, references, strict=True):
            ours, theirs = run["metrics"], reference["metrics"]
            gap = sum(abs(ours[key] - theirs[key]) for key in ("UA", "MIA", "RA", "TA")) / 4
            assert run["gap"] == pytest.approx(gap, abs=1e-4)
            tow = math.prod(1 - abs(ours[key] - theirs[key]) / 100 for key in ("UA", "RA", "TA"))
            assert run["ToW"] == pytest.approx(tow, abs=1e-5)
    assert all(run["gap"] == 0 and run["JS"] == 0 and run["metrics"]["UA"] == 100 for run in references)
    assert scenario["original"][0]["metrics"]["UA"] < 50


def cells(folder: Path) -> list[dict[str, Any]]:
    """What was run to unlearn or to measure."""
    kept = [json.loads(path.read_text())["cell"] for path in sorted((folder / "runs").glob("*.json"))]
    return [cell for cell in kept if "setting" in cell]


def cell(seed: int, **fields: Any) -> Any:
    """A cell on the digits."""
    kind = UnlearnCell if "start" in fields else TrainCell
    recipe = replace(TASKS["digits"], epochs=2)
    return kind(**{"recipe": recipe, "scenario": SCENARIOS["class"], "seed": seed, **fields})


def test_costs_are_counted_in_rows_that_the_model_read(folder: Path) -> None:
    scenario = record(folder)["scenarios"]["class"]
    forget, retain = (len(part) for part in module.data(cell(0)).split)
    tuned = scenario["methods"]["UGradSL"]
    for run in tuned["runs"]:
        batches, epochs = math.ceil(forget / 64), tuned["setting"]["epochs"]
        assert run["steps"] == batches * epochs
        assert run["rows"] == (forget + 64 * batches) * epochs  # batches of retain rows are always full
    assert scenario["retrained"][0]["rows"] == 2 * (retain - (retain % 64 == 1))


def test_rows_and_weights_differ_from_seed_to_seed(folder: Path) -> None:
    assert not torch.equal(*(module.data(cell(seed)).split.forget for seed in (0, 1)))
    kept = cells(folder)
    assert len({c[name] for c in kept for name in ("start", "retrained") if c["seed"] in (0, 1)}) == 4
    tuned = [c for c in kept if c["setting"] and c["seed"] == 9]
    reported = [
        c for c in kept if c["setting"] and c["seed"] != 9 and c["setting"] not in [t["setting"] for t in tuned]
    ]
    assert len(tuned) == 12
    assert {c["setting"]["callbacks"][0]["init_args"]["p"] for c in reported} == set(WEIGHTS[:2])  # the ablation
    chosen = [found["setting"] for found in record(folder)["scenarios"]["class"]["methods"].values()]
    for seed in (0, 1):
        assert all(any(c["setting"] == setting and c["seed"] == seed for c in kept) for setting in chosen)


def test_a_retrained_model_has_seen_no_row_to_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    class Spy(runs.Trainer):  # type: ignore[name-defined, misc]
        def fit(self, model: Any, loader: Any) -> None:
            seen.append({int(label) for _, labels in loader for label in labels})
            super().fit(model, loader)

    monkeypatch.setattr(runs, "Trainer", Spy)
    for scenario in (Scenario(), SCENARIOS["class"]):
        module.train(cell(0, scenario=scenario), tmp_path)
    assert seen == [set(range(10)), set(range(10)) - {3}]


def test_the_same_command_again_runs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(chunk: Any) -> Any:
        raise AssertionError("a cell was run again")

    before = record(folder)["scenarios"]
    monkeypatch.setattr(grid, "_perform", fail)
    assert bench_classification(str(folder), **TINY)["scenarios"] == before
    assert "tuning: 12 of 12 runs are finished" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="run again"):
        bench_classification(str(folder), **{**TINY, "seeds": [0, 1, 2]})


def test_a_method_whose_source_changed_runs_again_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record_before = (folder / "digits.json").read_text()
    name = "lightning_unlearn.classification.ugradsl"
    performed: list[Any] = []

    def perform(chunk: Any) -> int:
        performed.extend(cell for _, cell, *_ in chunk)
        return len(chunk)

    known = grid.sources
    monkeypatch.setattr(grid, "sources", lambda *a: {k: v + "x" * (k == name) for k, v in known(*a).items()})
    monkeypatch.setattr(grid, "_perform", perform)
    bench_classification(str(folder), **TINY)
    assert len(performed) == 6 + 2
    assert {c.setting.callbacks[0]["class_path"] for c in performed} == {"lightning_unlearn.UGradSL"}
    assert f"tuning: 6 of 12 runs are stale and repeated; keep_stale would keep them. Changed since: {name}." in (
        capsys.readouterr().out
    )
    performed.clear()
    bench_classification(str(folder), **TINY, keep_stale=True)
    assert performed == []
    assert json.loads((folder / "digits.json").read_text())["scenarios"] == json.loads(record_before)["scenarios"]


def test_a_model_whose_weights_are_gone_is_trained_again(folder: Path) -> None:
    weights = next((folder / "models").glob("*.pt"))
    weights.unlink()
    bench_classification(str(folder), **TINY)
    assert weights.is_file()


@pytest.mark.slow
def test_runs_in_processes_give_the_same(folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "METHODS", [replace(m, settings=m.settings[:1]) for m in METHODS])
        options = {**TINY, "methods": ["FineTune"], "seeds": [0], "workers": 2}
        found = bench_classification(str(tmp_path), **options)["scenarios"]["class"]
    expected = record(folder)["scenarios"]["class"]
    for name in ("original", "retrained"):
        assert found[name][0]["metrics"] == expected[name][0]["metrics"]
    tried = (side["methods"]["FineTune"]["tuning"][0] for side in (found, expected))
    assert len({json.dumps(t["runs"][0]["metrics"]) for t in tried}) == 1


def test_the_table_and_the_figures_are_written(folder: Path) -> None:
    text = (folder / "digits.md").read_text()
    for row in ("original", "retrained", "FineTune", "UGradSL"):
        assert sum(line.startswith(f"| {row} |") for line in text.splitlines()) == 2
    pytest.importorskip("matplotlib")
    assert (folder / "digits.svg").stat().st_size > 1000
    assert (folder / "digits-ablation.svg").stat().st_size > 1000


def test_a_cell_of_the_table_is_the_mean_over_seeds_and_its_spread() -> None:
    metrics = [{"UA": ua, "MIA": 50.0, "RA": 100.0, "TA": 90.0} for ua in (96.0, 98.0, 100.0)]
    runs = [{"metrics": m, "gap": g, "ToW": 0.9, "JS": 0.1} for m, g in zip(metrics, (1.0, 2.0, 3.0), strict=True)]
    # Student's t for 2 degrees of freedom is 4.303: 4.303 · 1 / √3 = 2.48.
    assert module._row(runs)[:5] == ["98.0 ± 2.0", "50.0 ± 0.0", "100.0 ± 0.0", "90.0 ± 0.0", "2.00 ± 2.48"]
    assert module._row([*runs, {"error": "nan"}])[0] == "not finite in 1 of 4 runs"
    assert module.gap({"error": "nan"}) > 100


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"mnist"}))
def test_rows_of_a_task_fit_its_model_in_every_scenario(task: str) -> None:
    if task == "mnist1d":
        pytest.importorskip("mnist1d")
    recipe: Recipe = TASKS[task]
    for scenario in SCENARIOS.values():
        data = module.data(cell(1, recipe=recipe, scenario=scenario))
        assert {"forget", "retain", "test"} <= set(data.eval_sets)
        net = LitClassifier(recipe.model["class_path"], recipe.model["init_args"])
        inputs, labels = next(iter(data.val_dataloader()["test"]))
        logits = net(inputs)
        assert logits.shape == (len(labels), 10)
        assert labels.max() < 10


def test_models_give_a_logit_a_class_and_padding_says_nothing() -> None:
    torch.manual_seed(0)
    assert ResNet8(4)(torch.randn(2, 1, 14, 14)).shape == ResNet8(4, 3)(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert MLP(4, 5)(torch.randn(2, 5)).shape == (2, 4)
    net = TextTransformer(classes=3, vocabulary=20).eval()
    short = torch.tensor([[5, 7, 2]])
    padded = torch.tensor([[5, 7, 2, 0, 0]])
    assert torch.allclose(net(short), net(padded), atol=1e-6)
    assert net(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()
