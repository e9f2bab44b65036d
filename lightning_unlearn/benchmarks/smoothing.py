"""Comparison of smoothing strategies: what is still forgotten after relearning and rounding, at equal forgetting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning_unlearn.benchmarks import smoothing_classifier, smoothing_language
from lightning_unlearn.benchmarks.classification import TrainCell, train
from lightning_unlearn.benchmarks.entries import Setting
from lightning_unlearn.benchmarks.facts import SETS, ModelCell, prepare
from lightning_unlearn.benchmarks.grid import Grid, Outcome, select, separate_seeds
from lightning_unlearn.benchmarks.methods import SCENARIOS, Scenario
from lightning_unlearn.benchmarks.smoothing_classifier import ClassifierCell
from lightning_unlearn.benchmarks.smoothing_language import LanguageCell
from lightning_unlearn.benchmarks.smoothing_methods import (
    CLASSIFIERS,
    NONE,
    OBJECTIVES,
    STRATEGIES,
    SWEEP,
    settings,
    swept,
)
from lightning_unlearn.benchmarks.smoothing_runs import SmoothingCell
from lightning_unlearn.benchmarks.smoothing_table import save_curves, table
from lightning_unlearn.benchmarks.table import write_record
from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.files import sha256
from lightning_unlearn.functional.robustness import curve_area
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model

__all__ = ["bench_smoothing"]

Task = Literal["digits", "mnist", "language"]
K = TypeVar("K")

_NATS = {"classifier": 8.0, "language": 4.0}
_UPDATES = {"classifier": 300, "language": 60}
_SEEDS = {"classifier": (0, 1, 2, 3, 4), "language": (0, 1, 2)}
_SHARPNESS = {"classifier": 10, "language": 5}
_TRIED = {"classifier": 3, "language": 1}


def bench_smoothing(
    output_dir: str = "runs/smoothing",
    task: Task = "mnist",
    objectives: Sequence[str] = (),
    strategies: Sequence[str] = (),
    seeds: Sequence[int] = (),
    tuning_seeds: Sequence[int] = (100,),
    tried: int | None = None,
    nats: float | None = None,
    max_updates: int | None = None,
    sharpness_steps: int | None = None,
    sweep: bool = False,
    model: str | None = None,
    precision: str = "bf16-mixed",
    epochs: int | None = None,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Compare smoothing strategies of the forget term by what relearning and quantization bring back.

    Each run ends at the first update after which the mean negative log-likelihood of all forget rows reaches ``nats``,
    so all strategies are compared at the same level of forgetting. Measured are the likelihood and the forgotten share:
    the error of the classifier on the class, or one minus the mean probability of the facts. Then a few forget rows are
    taught again, and the share is measured on the others after each update. It is also measured on all forget rows
    after the weights are rounded to int4.

    Each objective with each strategy runs with the same number of settings on ``tuning_seeds``. The best setting runs
    on ``seeds``: the one with the largest mean of the area under the curve of the forgotten share and the accuracy on
    the rows to keep. Writes ``<task>.json``, ``<task>.md`` and, with matplotlib, a figure per objective. After a kill,
    the same command runs what is missing.

    Args:
        output_dir: Folder to write.
        task: A classifier forgets a class of ``"mnist"`` or ``"digits"``; or a chat model the facts of the demo,
            ``"language"``.
        objectives: Any of ``"GradDiff"``, ``"NPO"`` and ``"SimNPO"``; all if empty.
        strategies: Any of ``"none"``, ``"SAM"``, ``"RS"``, ``"GP"``, ``"CR"``, ``"WA"`` and ``"QA"``; all if empty.
        seeds: Seeds that are reported; if empty, five for a classifier and three for the language model.
        tuning_seeds: Seeds on which settings are chosen.
        tried: Number of settings of each strategy; by default 3 for a classifier, and 1 for the language model, which
            is then not tuned.
        nats: The level of forgetting; by default 8 for a classifier, and 4 per token for the language model.
        max_updates: Updates after which a run ends even below the level; by default 300, or 60 for the language model.
        sharpness_steps: Steps of the search for the sharpness of the forget loss; by default 10, or 5 for the language
            model. 0 leaves it out.
        sweep: Also run SAM with several radii, beside NPO or else the first objective.
        model: Hub id, folder or GGUF file of a chat model; by default the demo's.
        precision: Precision of the Trainer for the language model.
        epochs: Epochs of training a classifier instead of the task's, to try the command out.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are faster than one of two. With 0, runs are made in this
            process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``<task>.json`` holds.

    Raises:
        ValueError: If a task, objective or strategy is unknown, or a reported seed is tuned on.
    """
    kind = "language" if one_of("task", task, (*CLASSIFIERS, "language")) == "language" else "classifier"
    chosen = select("objectives", objectives, OBJECTIVES[kind])
    planned = select("strategies", strategies, {plan.name: plan for plan in STRATEGIES[kind]})
    tried, seeds = at_least("tried", tried or _TRIED[kind], 1), seeds or _SEEDS[kind]
    separate_seeds(tuning_seeds, seeds)
    tuned_on = tuning_seeds if tried > 1 else ()
    run: dict[str, Any] = {
        "nats": nats or _NATS[kind],
        "max_updates": max_updates or _UPDATES[kind],
        "sharpness_steps": _SHARPNESS[kind] if sharpness_steps is None else sharpness_steps,
        "threads": threads,
    }
    grid, used = Grid(output_dir, workers, keep_stale), sorted({*seeds, *tuned_on})
    if kind == "classifier":
        cells, controls = _classifiers(grid, task, used, epochs, run)
        study = _Study(grid, smoothing_classifier.unlearn, cells, seeds, 9)
    else:
        cells, controls = _language(grid, model, used, precision, run), {}
        study = _Study(grid, smoothing_language.unlearn, cells, seeds, 1)
    methods = {(o, s): settings(kind, o, plan, tried) for o in chosen for s, plan in planned.items()}
    found = study.tuned(methods, tuned_on)
    anchors = {"original": cells, "retrained": controls} if controls else {"original": cells}
    known = study.runs({(n, s): side[s] for n, side in anchors.items() for s in seeds}, "anchors")
    record: dict[str, Any] = {
        **{"task": task, "library": version("lightning-unlearn"), **run},
        **{"seeds": list(seeds), "tuning_seeds": list(tuned_on)},
        "anchors": {n: [known[n, s] for s in seeds] for n in anchors},
        "objectives": {o: {s: found[o, s] for s in planned} for o in chosen},
        "sweep": _swept(study, kind, "NPO" if "NPO" in chosen else next(iter(chosen))) if sweep else {},
    }
    record = write_record(grid.folder / task, record, table)
    save_curves(grid.folder, task, record)
    return record


def score(outcome: Outcome) -> float:
    """Mean of the area under the curve of forgetting and of utility; 0 for a run that did not reach the level."""
    if "error" in outcome or not outcome["reached"]:
        return 0.0
    area = curve_area(outcome["relearning"]["steps"], outcome["relearning"]["forgotten"])
    return (area + outcome["utility"]["utility"]) / 2


@dataclass(frozen=True)
class _Study:
    """Runs of a task: the function of a run, the original model of each seed as a cell, and the reported seeds."""

    grid: Grid
    run: Callable[[Any, Path], Outcome]
    cells: Mapping[int, SmoothingCell]
    seeds: Sequence[int]
    together: int

    def runs(self, cells: Mapping[K, SmoothingCell], description: str) -> dict[K, Outcome]:
        """The result of each cell."""
        return self.grid.run(self.run, cells, description, self.together)

    def cell(self, key: Any, setting: Setting, seed: int) -> SmoothingCell:
        """A setting on a seed."""
        return replace(self.cells[seed], setting=setting)

    def tuned(
        self, methods: Mapping[tuple[str, str], Sequence[Setting]], tuned_on: Sequence[int]
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """Each method with the best of its settings, or the first where none is tuned on."""
        if tuned_on:
            return self.grid.tune(self.run, methods, self.cell, score, tuned_on, self.seeds, self.together)
        firsts = {key: first for key, (first, *_) in methods.items()}
        cells = {(key, seed): self.cell(key, firsts[key], seed) for key in methods for seed in self.seeds}
        found = self.runs(cells, "seeds")
        return {
            key: {"setting": asdict(firsts[key]), "tuning": [], "runs": [found[key, seed] for seed in self.seeds]}
            for key in methods
        }


def _classifiers(
    grid: Grid, task: str, seeds: Sequence[int], epochs: int | None, run: dict[str, Any]
) -> tuple[dict[int, SmoothingCell], dict[int, SmoothingCell]]:
    """The trained and the retrained classifier of each seed, as they are."""
    recipe = replace(CLASSIFIERS[task], epochs=epochs or CLASSIFIERS[task].epochs)
    kept = {s: TrainCell(recipe=recipe, scenario=SCENARIOS["class"], seed=s, threads=run["threads"]) for s in seeds}
    full = {s: replace(cell, scenario=Scenario()) for s, cell in kept.items()}
    sides: list[dict[int, SmoothingCell]] = []
    for cells, description in ((full, "training"), (kept, "retraining")):
        trained = grid.run(train, cells, description, 2)
        sides.append(
            {
                s: ClassifierCell(**run, recipe=recipe, scenario=c.scenario, seed=s, start=trained[s]["files"][0])
                for s, c in kept.items()
            }
        )
    return sides[0], sides[1]


def _language(
    grid: Grid, model: str | None, seeds: Sequence[int], precision: str, run: dict[str, Any]
) -> dict[int, SmoothingCell]:
    """The chat model as it is, on each seed; it has no retrained control."""
    source = model or packaged_model() or HUB_MODEL
    start = ModelCell(seed=0, threads=run["threads"], source=source)
    (folder,) = grid.run(prepare, {"start": start}, "model")["start"]["files"]
    data = sha256(*(FACTS_FOLDER / f"{name}.jsonl" for name in sorted(SETS)))
    return {s: LanguageCell(**run, model=folder, data_sha256=data, precision=precision, seed=s) for s in seeds}


def _swept(study: _Study, kind: str, objective: str) -> dict[str, Any]:
    """SAM over its radius beside an objective."""
    (alone,) = settings(kind, objective, next(plan for plan in STRATEGIES[kind] if plan.name == NONE), 1)
    radii = (0.0, *SWEEP)
    cells = {(rho, seed): study.cell(None, swept(alone, rho), seed) for rho in radii for seed in study.seeds}
    runs = study.runs(cells, "sweep")
    return {"objective": objective, "runs": {f"{rho:g}": [runs[rho, seed] for seed in study.seeds] for rho in radii}}
