"""Comparison of methods for classifiers with retraining: distance to the retrained model, and the cost."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_unlearn.benchmarks import methods as lists
from lightning_unlearn.benchmarks.grid import Cell, Grid, Outcome, select, separate_seeds
from lightning_unlearn.benchmarks.methods import Recipe, Scenario, Setting
from lightning_unlearn.benchmarks.models import CosineClassifier
from lightning_unlearn.benchmarks.runs import Meter, build, quiet_libraries, trainer
from lightning_unlearn.benchmarks.table import log_tables, markdown, save_figure, spread, write_record
from lightning_unlearn.classification.data.arrays import CoarseLabels
from lightning_unlearn.classification.data.module import ClassificationDataModule
from lightning_unlearn.classification.lit_classifier import LitClassifier
from lightning_unlearn.classification.metrics.accuracy import accuracy, unlearning_accuracy
from lightning_unlearn.classification.metrics.divergence import js_divergence
from lightning_unlearn.classification.metrics.features import FEATURES
from lightning_unlearn.classification.metrics.gap import average_gap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy, attack_accuracy
from lightning_unlearn.classification.metrics.outputs import Outputs, collect_outputs
from lightning_unlearn.classification.metrics.tow import tow
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.lightning import seed_everything
from lightning_unlearn.core.plots import gap_figure, heat_map_figure
from lightning_unlearn.core.seeds import over_seeds

__all__ = ["bench_classification"]

COMPARED = ("UA", "MIA", "RA", "TA")
HEADER = ("UA", "MIA", "RA", "TA", "gap ± CI", "ToW", "JS", "CPU s", "steps", "rows")
ROWS = 64  # of a role in a batch
TOGETHER = 6  # short runs of a process


@dataclass(frozen=True, kw_only=True)
class TrainCell(Cell):
    """A model trained on the rows that the scenario keeps."""

    recipe: Recipe
    scenario: Scenario


@dataclass(frozen=True, kw_only=True)
class UnlearnCell(TrainCell):
    """A setting of a method, compared with retrained weights; without a setting, the original weights are compared.

    Weight files are named by the hash of their content. The reference has the measurements of the retrained weights.
    """

    start: str
    retrained: str
    reference: Mapping[str, float] | None = None
    setting: Setting | None = None


def bench_classification(
    output_dir: str = "runs/classification",
    task: str = "mnist",
    scenarios: Sequence[str] = ("class", "random"),
    methods: Sequence[str] = (),
    tuning_seeds: Sequence[int] = (100,),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    ablation_seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    threads: int = 1,
    workers: int = 2,
    wandb_project: str | None = None,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Compare methods at an equal tuning budget with models that are retrained without the rows to forget.

    For each seed, one model is trained on all rows, and for each scenario another one on the retain rows. Rows, weights
    and the order of batches differ between seeds. Each method runs with each of its settings on ``tuning_seeds``. The
    setting with the smallest average gap runs on ``seeds``; the gap is the mean absolute difference in UA, RA, TA and
    confidence MIA to the model that was retrained with the same seed. UGradSL and UGradSL+ also run over a grid of
    alpha and p. On MNIST-1D, some methods also run untuned: with default arguments, the training learning rate and no
    clipping.

    Writes ``<task>.json``, ``<task>.md`` and, with matplotlib, ``<task>.svg`` and ``<task>-ablation.svg``. Trained
    models are kept in ``models/`` and finished runs in ``runs/``: after a kill, or with more methods, the same command
    runs only what is missing, and what ran on code that has changed.

    Args:
        output_dir: Folder to write.
        task: ``"mnist"`` (5,000 images and a residual net), ``"mnist1d"`` (2,000 signals and a convolutional net),
            ``"digits"``, ``"images"`` or ``"text"``.
        scenarios: Any of ``"class"``, ``"random"`` and ``"group"``; all if empty.
        methods: Names of the methods to run; all if empty.
        tuning_seeds: Seeds on which settings are chosen.
        seeds: Seeds that are reported, none of which is tuned on.
        ablation_seeds: Seeds of the grid of alpha and p; without any, there is none.
        epochs: Epochs of training in place of the task's, to try the command out.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are faster than one of two. With 0, runs are made in this
            process.
        wandb_project: Project of Weights & Biases to which the table is logged.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``<task>.json`` holds.

    Raises:
        ValueError: If a task, scenario or method is unknown, there is no seed, or a reported seed is tuned on.
    """
    recipe = lists.TASKS[one_of("task", task, lists.TASKS)]
    recipe = replace(recipe, epochs=epochs or recipe.epochs)
    chosen = select("methods", methods, lists.methods_of(task), f" of task {task!r}")
    forgotten = select("scenarios", scenarios, lists.SCENARIOS)
    separate_seeds(tuning_seeds, seeds)
    grid = Grid(output_dir, workers, keep_stale)
    keys = [(name, seed) for seed in sorted({*tuning_seeds, *seeds, *ablation_seeds}) for name in forgotten]
    kept = {(n, s): TrainCell(recipe=recipe, scenario=forgotten[n], seed=s, threads=threads) for n, s in keys}
    # Scenarios with the same labels share the original model.
    full = {key: replace(cell, scenario=Scenario(coarse=cell.scenario.coarse)) for key, cell in kept.items()}
    original, retrained = grid.run(train, full, "training"), grid.run(train, kept, "retraining")
    files = {key: {"start": original[key]["files"][0], "retrained": retrained[key]["files"][0]} for key in keys}
    cells = {key: UnlearnCell(**vars(kept[key]), **files[key]) for key in keys}
    unchanged = {key: replace(cell, start=cell.retrained) for key, cell in cells.items()}
    references = grid.run(unlearn, unchanged, "references", TOGETHER)
    cells = {key: replace(cells[key], reference=references[key]["metrics"]) for key in keys}

    def cell(key: tuple[str, str], setting: Setting, seed: int) -> UnlearnCell:
        return replace(cells[key[0], seed], setting=setting)

    settings = {(n, m.name): m.settings for n in forgotten for m in chosen.values() if n in m.scenarios}
    tuned = grid.tune(unlearn, settings, cell, lambda run: -gap(run), tuning_seeds, seeds, TOGETHER)
    before = grid.run(unlearn, {key: cells[key] for key in keys if key[1] in seeds}, "before", TOGETHER)
    plain = {name: setting for name, setting in lists.UNTUNED.get(task, {}).items() if name in chosen}
    trials = {
        (n, name, seed): cell((n, name), plain[name], seed) for n in forgotten for name in plain for seed in seeds
    }
    untuned = grid.run(unlearn, trials, "untuned", TOGETHER)
    costs = {key: {name: run[name] for name in ("seconds", "rows", "steps")} for key, run in retrained.items()}
    record: dict[str, Any] = {
        **{"recipe": asdict(recipe), "threads": threads, "library": version("lightning-unlearn")},
        **{"task": task, "seeds": list(seeds), "tuning_seeds": list(tuning_seeds)},
        "scenarios": {
            name: {
                "original": [before[name, seed] for seed in seeds],
                "retrained": [references[name, seed] | costs[name, seed] for seed in seeds],
                "methods": {method: found for (scenario, method), found in tuned.items() if scenario == name},
                "untuned": {method: [untuned[name, method, seed] for seed in seeds] for method in plain},
            }
            for name in forgotten
        },
        "ablation": _ablation(grid, cell, list(forgotten), ablation_seeds) if ablation_seeds else {},
    }
    record = write_record(grid.folder / task, record, table)
    _draw(record, grid.folder / task)
    if wandb_project is not None:
        config = {key: record[key] for key in ("task", "seeds", "tuning_seeds")}
        log_tables(wandb_project, config, ["method", *HEADER], {n: _rows(s) for n, s in record["scenarios"].items()})
    return record


def gap(run: Outcome) -> float:
    """The average gap to the retrained model; that of a run that had to stop is larger than any."""
    return run["gap"] if "error" not in run else 1000.0


def _ablation(grid: Grid, cell: Any, scenarios: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """The average gap over alpha (columns) and p (rows), by method and scenario."""
    shape = len(seeds), -1, len(lists.ALPHAS)
    gaps: dict[str, Any] = {method: {} for method in lists.ABLATION}
    fixed = {method: {"lr": first.lr, "epochs": first.epochs} for method, (first, *_) in lists.ABLATION.items()}
    cells = {
        (method, name, seed, i): cell((name, method), setting, seed)
        for method, settings in lists.ABLATION.items()
        for name in scenarios
        for seed in seeds
        for i, setting in enumerate(settings)
    }
    runs = grid.run(unlearn, cells, "ablation", TOGETHER)
    for method, by in gaps.items():
        for name in scenarios:
            values = [gap(run) for key, run in runs.items() if key[:2] == (method, name)]
            by[name] = np.reshape(values, shape).mean(0).tolist()
    return {"alpha": lists.ALPHAS, "p": lists.WEIGHTS, "seeds": list(seeds), "fixed": fixed, "gap": gaps}


def train(cell: TrainCell, folder: Path) -> Outcome:
    """Train a model on the rows that are not to be forgotten, on all if none are, and keep its weights."""
    quiet_libraries()
    forgets = replace(cell.scenario, coarse=None) != Scenario()
    # A retrained model starts from other weights than the one it is compared with.
    seed_everything(cell.seed + 1000 * forgets, verbose=False)
    kept: Any = data(cell, "retain").sets["retain"] if forgets else rows(cell, "train")
    module = CosineClassifier(cell.recipe.model["class_path"], cell.recipe.model["init_args"], lr=cell.recipe.lr)
    # A last batch of one row would have no variance for batch normalization.
    loader = DataLoader(kept, ROWS, shuffle=True, drop_last=len(kept) % ROWS == 1)
    meter = Meter()
    trainer([meter], max_epochs=cell.recipe.epochs).fit(module, loader)
    buffer = io.BytesIO()
    torch.save(module.model.state_dict(), buffer)
    file = f"models/{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt"
    with replacing(folder / file) as part:
        part.write_bytes(buffer.getvalue())
    return {"files": [file], "seconds": meter.seconds, "rows": meter.rows, "steps": len(loader) * cell.recipe.epochs}


def unlearn(cell: UnlearnCell, folder: Path) -> Outcome:
    """Unlearn, and compare with the retrained model."""
    quiet_libraries()
    sets = data(cell, cell.setting.epoch if cell.setting else "forget")
    retrained = collect_outputs(load(cell, folder / cell.retrained), {"forget": sets.set_loaders()["forget"]})
    seed_everything(cell.seed, verbose=False)
    module, cost = load(cell, folder / cell.start, cell.setting.lr if cell.setting else 1e-3), {}
    if cell.setting:
        callbacks = build(cell.setting.callbacks, seed=cell.seed, forget_class=cell.scenario.forget_class)
        meter = Meter()
        run = trainer([meter, *callbacks], max_epochs=cell.setting.epochs, gradient_clip_val=cell.setting.clip)
        try:
            run.fit(module, sets)
        except FloatingPointError as error:
            return {"error": str(error)}
        cost = {"seconds": meter.seconds, "rows": meter.rows, "steps": run.global_step}
    try:
        outputs = collect_outputs(module, sets.set_loaders())
    except ValueError as error:  # logits that are not finite
        return {"error": str(error)}
    metrics = measured(outputs)
    sides = metrics, cell.reference or metrics
    accuracies = [{"forget": 100 - side["UA"], "retain": side["RA"], "test": side["TA"]} for side in sides]
    return {
        "metrics": metrics,
        "gap": average_gap(*({name: side[name] for name in COMPARED} for side in sides)),
        "ToW": tow(*accuracies),
        "JS": float(js_divergence(outputs["forget"].logits, retrained["forget"].logits).mean()),
        **cost,
    }


def rows(cell: TrainCell, part: str) -> Any:
    """The rows of a part, ``"train"`` or ``"test"``, with the scenario's labels."""
    different = cell.recipe.test_args if part == "test" else {}
    described = {**cell.recipe.rows, "init_args": {**cell.recipe.rows["init_args"], **different}}
    (dataset,) = build([described], part=part, seed=cell.seed)
    return CoarseLabels(dataset, cell.scenario.coarse) if cell.scenario.coarse else dataset


def data(cell: TrainCell, epoch: Any = "forget") -> ClassificationDataModule:
    """What the scenario forgets and keeps."""
    forgotten = {key: value for key, value in vars(cell.scenario).items() if key != "coarse"}
    options: Any = {"split_seed": cell.seed, "batch_size": ROWS, "epoch": epoch, "seed": cell.seed, **forgotten}
    return ClassificationDataModule(rows(cell, "train"), rows(cell, "test"), **options)


def load(cell: TrainCell, weights: Path, lr: float = 1e-3) -> LitClassifier:
    """The classifier with some weights."""
    return LitClassifier(cell.recipe.model["class_path"], cell.recipe.model["init_args"], str(weights), lr=lr)


def measured(outputs: dict[str, Outputs]) -> dict[str, float]:
    """Numbers of a model alone, in percent."""
    attack = MIAEfficacy()
    for role, part in (("member", "retain"), ("nonmember", "test"), ("forget", "forget")):
        attack.update(*outputs[part], role=role)  # type: ignore[arg-type]
    mia = attack.compute()
    judged = (FEATURES["confidence"](*outputs[part]) for part in ("retain", "test"))
    numbers = {
        "attack": attack_accuracy(*judged)[0],
        "UA": float(unlearning_accuracy(*outputs["forget"])),
        "RA": float(accuracy(*outputs["retain"])),
        "TA": float(accuracy(*outputs["test"])),
        "MIA": mia["confidence"],
        **{f"MIA_{name}": value for name, value in mia.items()},
    }
    if "test_forget" in outputs:
        numbers["test_forget_error"] = float(unlearning_accuracy(*outputs["test_forget"]))
    return numbers


def table(record: dict[str, Any]) -> str:
    """Markdown: percentages as mean ± standard deviation over seeds, the gap with its 95 % confidence interval.

    The attack by confidence is at chance, and its MIA means nothing, where its accuracy on rows that it was not fitted
    on is about 50.
    """
    parts, columns = [], ["MIA by", *FEATURES, "accuracy of the attack"]
    for name, scenario in record["scenarios"].items():
        attacks = [
            [
                row,
                *(spread([run["metrics"][f"MIA_{feature}"] for run in _finished(runs)]) for feature in FEATURES),
                spread([run["metrics"]["attack"] for run in _finished(runs) if "attack" in run["metrics"]]),
            ]
            for row, runs in _runs(scenario).items()
        ]
        parts += [
            f"{name}:\n",
            markdown(["", *HEADER], _rows(scenario)),
            markdown(columns, attacks),
        ]
    return "\n".join(parts)


def _runs(scenario: dict[str, Any]) -> dict[str, list[Outcome]]:
    methods = {name: method["runs"] for name, method in scenario["methods"].items()}
    untuned = {f"{name}, untuned": runs for name, runs in scenario.get("untuned", {}).items()}
    return {"original": scenario["original"], "retrained": scenario["retrained"], **methods, **untuned}


def _finished(runs: Sequence[Outcome]) -> list[Outcome]:
    return [run for run in runs if "error" not in run]


def _rows(scenario: dict[str, Any]) -> list[list[str]]:
    return [[name, *_row(runs)] for name, runs in _runs(scenario).items()]


def _row(runs: Sequence[Outcome]) -> list[str]:
    if failed := len(runs) - len(_finished(runs)):
        return [f"not finite in {failed} of {len(runs)} runs"]
    over = over_seeds(torch.tensor([run["gap"] for run in runs]))
    cells = [spread([run["metrics"][key] for run in runs]) for key in COMPARED]
    cells.append(f"{over.mean:.2f}" + (f" ± {over.ci:.2f}" if over.n > 1 else ""))
    cells += [f"{np.mean([run[key] for run in runs]):.3f}" for key in ("ToW", "JS")]
    digits = {"seconds": 1, "steps": 0, "rows": 0} if "seconds" in runs[0] else {}
    return cells + [f"{np.median([run[key] for run in runs]):.{n}f}" for key, n in digits.items()]


def _draw(record: dict[str, Any], path: Path) -> None:
    gaps = {
        name: {n: [run["gap"] for run in _finished(rs)] for n, rs in _runs(scenario).items() if n != "retrained"}
        for name, scenario in record["scenarios"].items()
    }
    save_figure(path.with_suffix(".svg"), lambda: gap_figure(gaps))
    if ablation := record["ablation"]:
        maps = {f"{method}, {name}": gap for method, by in ablation["gap"].items() for name, gap in by.items()}
        axes = ablation["alpha"], ablation["p"], "α", "p", "average gap"
        save_figure(path.with_name(f"{path.name}-ablation.svg"), lambda: heat_map_figure(maps, *axes))
