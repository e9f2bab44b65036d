"""The comparison on classifiers, on digits and a small perceptron."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import lightning_unlearn
from lightning_unlearn import LitClassifier, classification
from lightning_unlearn.benchmarks import classification as module
from lightning_unlearn.benchmarks.classification import bench_classification
from lightning_unlearn.benchmarks.methods import ABLATION, ALPHAS, METHODS, TASKS, WEIGHTS
from lightning_unlearn.benchmarks.models import MLP, ConvNet, ResNet8, TextTransformer

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
    "workers": 1,
}


def in_this_process(cells: Any, work: Any, folder: Path, workers: int, description: str) -> list[Any]:
    """What `run_cells` does, without a process a run; those are tested with it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for cell in cells:
        path = folder / f"{module.cell_key(cell)}.json"
        if not path.exists():
            path.write_text(json.dumps({"cell": cell, "result": work(cell)}))
        found.append(json.loads(path.read_text())["result"])
    return found


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_cells", in_this_process)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was run once, with a grid of alpha and p of two by two."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_cells", in_this_process)
        patch.setattr(module, "ALPHAS", ALPHAS[:2])
        patch.setattr(module, "WEIGHTS", WEIGHTS[:2])
        corner = [s for i, s in enumerate(ABLATION["UGradSL"]) if i in (0, 1, len(ALPHAS), len(ALPHAS) + 1)]
        patch.setattr(module, "ABLATION", {"UGradSL": tuple(corner)})
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
        kept = [json.dumps(setting, sort_keys=True) for setting in method.settings]
        assert len(set(kept)) == 6, method.name
        for setting in method.settings:
            for callback in setting["callbacks"]:
                built = module._callback(callback, {"seed": 3, "way": {"forget_class": 4}})
                assert type(built) is getattr(lightning_unlearn, callback["class_path"].rpartition(".")[2])
                assert getattr(built, "seed", 3) == 3
                assert getattr(built, "forget_class", 4) == 4


def test_the_grid_is_in_the_order_that_it_is_drawn_in() -> None:
    for settings in ABLATION.values():
        drawn = [s["callbacks"][0]["init_args"] for s in settings]
        assert drawn == [{"alpha": alpha, "p": p} for p in WEIGHTS for alpha in ALPHAS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "cifar"}, r"task must be one of \['digits', 'images', 'mnist', 'text'\], but got 'cifar'"),
        ({"methods": ["FineTune", "NPO"]}, r"'digits' has no methods \['NPO'\]"),
        ({"task": "text", "methods": ["UNSIR"]}, r"'text' has no methods \['UNSIR'\]"),
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
        gaps = [setting["gap"] for setting in found["tuning"]]
        best = found["tuning"][gaps.index(min(gaps))]
        assert len(gaps) == 6, name
        assert {**found["setting"], "gap": min(gaps)} == best
        assert len(found["runs"]) == 2


def test_gaps_and_tow_are_those_of_the_metrics_beside_them(folder: Path) -> None:
    scenario = record(folder)["scenarios"]["class"]
    references = scenario["retrained"]
    for runs in (scenario["original"], references, *(m["runs"] for m in scenario["methods"].values())):
        for run, reference in zip(runs, references, strict=True):
            ours, theirs = run["metrics"], reference["metrics"]
            gap = sum(abs(ours[key] - theirs[key]) for key in ("UA", "MIA", "RA", "TA")) / 4
            assert run["gap"] == pytest.approx(gap, abs=1e-4)
            tow = math.prod(1 - abs(ours[key] - theirs[key]) / 100 for key in ("UA", "RA", "TA"))
            assert run["ToW"] == pytest.approx(tow, abs=1e-5)
    assert all(run["gap"] == 0 and run["JS"] == 0 and run["metrics"]["UA"] == 100 for run in references)
    assert scenario["original"][0]["metrics"]["UA"] < 50


def test_costs_are_counted_in_rows_that_the_model_read(folder: Path) -> None:
    scenario = record(folder)["scenarios"]["class"]
    forget, retain = (len(part) for part in module._data(cell_of(folder, 0)).split)
    tuned = scenario["methods"]["UGradSL"]
    for run in tuned["runs"]:
        batches, epochs = math.ceil(forget / 64), tuned["setting"]["epochs"]
        assert run["steps"] == batches * epochs
        assert run["rows"] == (forget + 64 * batches) * epochs  # batches of retain rows are always full
    assert scenario["retrained"][0]["rows"] == 2 * (retain - (retain % 64 == 1))


def cell_of(folder: Path, seed: int) -> Any:
    cells = [json.loads(path.read_text())["cell"] for path in sorted((folder / "runs").glob("*.json"))]
    return next(cell for cell in cells if cell["seed"] == seed and cell["way"] == {"forget_class": 3})


def test_rows_and_weights_differ_from_seed_to_seed(folder: Path) -> None:
    splits = [module._data(cell_of(folder, seed)).split.forget for seed in (0, 1)]
    assert not torch.equal(*splits)
    cells = [cell_of(folder, seed) for seed in (0, 1)]
    assert len({cell["original"] for cell in cells} | {cell["retrained"] for cell in cells}) == 4
    tuned = [cell for path in (folder / "runs").glob("*.json") if (cell := json.loads(path.read_text())["cell"])]
    assert {cell["seed"] for cell in tuned if len(cell["settings"]) == 6} == {9}
    assert {cell["seed"] for cell in tuned if len(cell["settings"]) == 1} == {0, 1}


def test_a_retrained_model_has_seen_no_row_to_forget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    class Spy(module.Trainer):  # type: ignore[name-defined, misc]
        def fit(self, model: Any, loader: Any) -> None:
            seen.append({int(label) for _, labels in loader for label in labels})
            super().fit(model, loader)

    monkeypatch.setattr(module, "Trainer", Spy)
    cell = {**module._Bench(folder, {}, {}, 1, 1).run, "recipe": cell_of(folder, 0)["recipe"], "seed": 0}
    for way in ({}, {"forget_class": 3}):
        module.train_cell({**cell, "way": way}, str(folder / "models"))
    assert seen == [set(range(10)), set(range(10)) - {3}]


def test_the_same_command_again_runs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = record(folder)["scenarios"]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(module, "run_cells", in_this_process)
    for name in ("train_cell", "unlearn_cell"):
        monkeypatch.setattr(module, name, fail)
    assert bench_classification(str(folder), **TINY)["scenarios"] == before
    with pytest.raises(AssertionError, match="run again"):
        bench_classification(str(folder), **{**TINY, "seeds": [0, 1, 2]})


@pytest.mark.usefixtures("_one_process")
def test_a_model_whose_weights_are_gone_is_trained_again(folder: Path) -> None:
    weights = next((folder / "models").glob("*.pt"))
    weights.unlink()
    bench_classification(str(folder), **TINY)
    assert weights.is_file()


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
    assert module._cells(runs)[:5] == ["98.0 ± 2.0", "50.0 ± 0.0", "100.0 ± 0.0", "90.0 ± 0.0", "2.00 ± 2.48"]
    assert module._cells([*runs, {"error": "nan"}])[0] == "not finite in 1 of 4 runs"
    assert module._gap({"error": "nan"}) > 100


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"mnist"}))
def test_rows_of_a_task_fit_its_model_in_every_scenario(task: str) -> None:
    recipe = TASKS[task]._asdict()
    for way in TASKS[task].scenarios.values():
        cell = {"recipe": recipe, "way": way, "seed": 1}
        data = module._data(cell)
        assert {"forget", "retain", "test"} <= set(data.eval_sets)
        net = LitClassifier(recipe["model"], recipe["model_args"])
        inputs, labels = next(iter(data.val_dataloader()["test"]))
        logits = net(inputs)
        assert logits.shape == (len(labels), 10)
        assert labels.max() < 10


def test_models_give_a_logit_a_class_and_padding_says_nothing() -> None:
    torch.manual_seed(0)
    assert ConvNet(4, 3)(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert ResNet8(4)(torch.randn(2, 1, 14, 14)).shape == (2, 4)
    assert MLP(4, 5)(torch.randn(2, 5)).shape == (2, 4)
    net = TextTransformer(classes=3, vocabulary=20).eval()
    short = torch.tensor([[5, 7, 2]])
    padded = torch.tensor([[5, 7, 2, 0, 0]])
    assert torch.allclose(net(short), net(padded), atol=1e-6)
    assert net(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()
