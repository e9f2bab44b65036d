"""Methods on small classifiers beside models retrained without the rows: what is forgotten, kept, and the cost."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import instantiate_class
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from lightning_unlearn.benchmarks.cells import Cell, cell_key, run_cells, write_atomically
from lightning_unlearn.benchmarks.methods import ABLATION, ALPHAS, METHODS, TASKS, WEIGHTS
from lightning_unlearn.classification.data.arrays import CoarseLabels
from lightning_unlearn.classification.data.module import ClassificationDataModule
from lightning_unlearn.classification.lit_classifier import LitClassifier
from lightning_unlearn.classification.metrics.accuracy import accuracy, unlearning_accuracy
from lightning_unlearn.classification.metrics.divergence import js_divergence
from lightning_unlearn.classification.metrics.features import FEATURES
from lightning_unlearn.classification.metrics.gap import average_gap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy
from lightning_unlearn.classification.metrics.outputs import Outputs, collect_outputs
from lightning_unlearn.classification.metrics.tow import tow
from lightning_unlearn.core.plots import gap_figure, heat_map_figure
from lightning_unlearn.core.seeds import over_seeds

__all__ = ["bench_classification"]

_QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
_COMPARED = ("UA", "MIA", "RA", "TA")
_ROWS = 64  # a role in a batch
_BOTH = ({"model": "original"}, {"model": "retrained"})


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
) -> dict[str, Any]:
    """Compare methods at an equal tuning budget with models that are retrained without the rows to forget.

    For each seed, one model is trained on all rows, and for each scenario another on the retain rows; rows, weights and
    order of batches differ from seed to seed. Each method runs with each of its settings on ``tuning_seeds``. The one
    with the smallest average gap, the mean absolute difference in UA, RA, TA and confidence MIA to the model retrained
    with that seed, runs on ``seeds``. UGradSL and UGradSL+ also run over a grid of alpha and p.

    Writes ``<task>.json``, ``<task>.md`` and, with matplotlib, ``<task>.svg`` and ``<task>-ablation.svg``. Trained
    models are kept in ``models/`` and finished runs in ``runs/`` there: after a kill, or with more methods, the same
    command goes on.

    Args:
        output_dir: Folder to write.
        task: ``"mnist"`` (5,000 images and a residual net), ``"digits"``, ``"images"`` or ``"text"``.
        scenarios: Any of ``"class"``, ``"random"`` and ``"group"``.
        methods: Names of the methods to run; all if empty.
        tuning_seeds: Seeds that settings are chosen on.
        seeds: Seeds that are reported, none of which is tuned on.
        ablation_seeds: Seeds of the grid of alpha and p; without any, there is none.
        epochs: Epochs of training in place of the task's, to try the command out.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are quicker than one of two.
        wandb_project: Project of Weights & Biases that the table is logged to.

    Returns:
        What ``<task>.json`` holds.

    Raises:
        ValueError: If a task, scenario or method is unknown, there is no seed, or a reported seed is tuned on.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {sorted(TASKS)}, but got {task!r}.")
    able = [method for method in METHODS if method.name not in TASKS[task].without]
    known = {"scenarios": list(TASKS[task].scenarios), "methods": [method.name for method in able]}
    for kind, asked in (("scenarios", scenarios), ("methods", methods)):
        unknown = sorted(set(asked) - set(known[kind]))
        if unknown:
            raise ValueError(f"Task {task!r} has no {kind} {unknown}. It has {known[kind]}.")
    if not seeds or not tuning_seeds or set(seeds) & set(tuning_seeds):
        raise ValueError(
            f"seeds and tuning_seeds must both be given and have none in common, but got {list(seeds)} and "
            f"{list(tuning_seeds)}."
        )
    chosen = [method for method in able if not methods or method.name in methods]
    recipe: dict[str, Any] = {**TASKS[task]._asdict(), "epochs": epochs or TASKS[task].epochs}
    ways = recipe.pop("scenarios")
    del recipe["without"]
    bench = _Bench(Path(output_dir), recipe, {name: ways[name] for name in scenarios}, threads, workers)
    bench.train(sorted({*tuning_seeds, *seeds, *ablation_seeds}))
    pairs = [(method, name) for name in scenarios for method in chosen if name in (method.scenarios or scenarios)]

    tuned = bench.unlearn([(name, seed, m.settings) for m, name in pairs for seed in tuning_seeds], "tuning")
    best: list[dict[str, Any]] = []
    tuning: list[list[float]] = []
    for method, _ in pairs:
        tried = [next(tuned) for _ in tuning_seeds]
        tuning.append([statistics.mean(map(_gap, runs)) for runs in zip(*tried, strict=True)])
        best.append(method.settings[tuning[-1].index(min(tuning[-1]))])
    found = bench.unlearn(
        [(name, seed, (setting,)) for (_, name), setting in zip(pairs, best, strict=True) for seed in seeds], "seeds"
    )
    record: dict[str, Any] = {
        **bench.run,
        "task": task,
        "seeds": list(seeds),
        "tuning_seeds": list(tuning_seeds),
        "scenarios": {name: {**bench.references(name, seeds), "methods": {}} for name in scenarios},
    }
    for (method, name), setting, gaps in zip(pairs, best, tuning, strict=True):
        record["scenarios"][name]["methods"][method.name] = {
            "setting": setting,
            "tuning": [{**s, "gap": gap} for s, gap in zip(method.settings, gaps, strict=True)],
            "runs": [next(found)[0] for _ in seeds],
        }
    record["ablation"] = _ablation(bench, scenarios, ablation_seeds)
    write_atomically(bench.folder / f"{task}.json", json.dumps(record, indent=2) + "\n")
    text = table(record)
    write_atomically(bench.folder / f"{task}.md", text)
    _draw(record, bench.folder / task)
    if wandb_project is not None:
        _log(record, wandb_project)
    print(text)
    return record


class _Bench:
    """The cells of one task."""

    def __init__(self, folder: Path, recipe: Cell, ways: dict[str, Cell], threads: int, workers: int) -> None:
        self.folder, self.ways, self.workers = folder, ways, workers
        self.run: Cell = {"recipe": recipe, "threads": threads, "library": version("lightning-unlearn")}
        self.models = folder / "models"
        self.costs: dict[str, Cell] = {}

    def original(self, name: str, seed: int) -> Cell:
        """The cell that trains on all rows; scenarios with the same labels share it."""
        labels = {key: value for key, value in self.ways[name].items() if key == "coarse"}
        return {**self.run, "seed": seed, "way": labels}

    def retrained(self, name: str, seed: int) -> Cell:
        """The cell that trains on the retain rows."""
        return {**self.run, "seed": seed, "way": self.ways[name]}

    def train(self, seeds: Sequence[int]) -> None:
        """Train what is missing."""
        made = [make(name, seed) for seed in seeds for name in self.ways for make in (self.original, self.retrained)]
        cells = list({cell_key(cell): cell for cell in made}.values())
        for cell in cells:
            if not (self.models / f"{cell_key(cell)}.pt").exists():
                (self.models / f"{cell_key(cell)}.json").unlink(missing_ok=True)
        results = run_cells(cells, partial(train_cell, models=str(self.models)), self.models, self.workers, "training")
        self.costs = {cell_key(cell): cost for cell, cost in zip(cells, results, strict=True)}

    def unlearn(self, jobs: list[tuple[str, int, Sequence[Cell]]], description: str) -> Iterator[list[Cell]]:
        """Results of the settings of each job ``(scenario, seed, settings)``."""
        cells = [
            {
                **self.run,
                "seed": seed,
                "way": self.ways[name],
                "original": cell_key(self.original(name, seed)),
                "retrained": cell_key(self.retrained(name, seed)),
                "settings": list(settings),
            }
            for name, seed, settings in jobs
        ]
        work = partial(unlearn_cell, models=str(self.models))
        results = run_cells(cells, work, self.folder / "runs", self.workers, description)
        return iter([result["runs"] for result in results])

    def references(self, name: str, seeds: Sequence[int]) -> dict[str, list[Cell]]:
        """The models before unlearning and the retrained ones, measured alike."""
        both = list(self.unlearn([(name, seed, _BOTH) for seed in seeds], f"{name}: before and retrained"))
        costs = [self.costs[cell_key(self.retrained(name, seed))] for seed in seeds]
        return {
            "original": [runs[0] for runs in both],
            "retrained": [{**runs[1], **cost} for runs, cost in zip(both, costs, strict=True)],
        }


def _gap(run: Cell) -> float:
    """The average gap to the retrained model; that of a run that had to stop is larger than any."""
    return run["gap"] if "error" not in run else 1000.0


def _ablation(bench: _Bench, scenarios: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """The average gap over alpha (columns) and p (rows), by method and scenario."""
    if not seeds:
        return {}
    pairs = [(method, name) for method in ABLATION for name in scenarios]
    found = bench.unlearn([(name, seed, ABLATION[method]) for method, name in pairs for seed in seeds], "ablation")
    gaps: dict[str, Any] = {method: {} for method in ABLATION}
    for method, name in pairs:
        tried = [next(found) for _ in seeds]
        flat = [statistics.mean(map(_gap, runs)) for runs in zip(*tried, strict=True)]
        gaps[method][name] = [flat[i : i + len(ALPHAS)] for i in range(0, len(flat), len(ALPHAS))]
    fixed = {method: {key: settings[0][key] for key in ("lr", "epochs")} for method, settings in ABLATION.items()}
    return {"alpha": list(ALPHAS), "p": list(WEIGHTS), "seeds": list(seeds), "fixed": fixed, "gap": gaps}


# ---- in a process of its own ---------------------------------------------------------------------------------------


class _Scheduled(LitClassifier):
    """SGD with a rate that falls to 0 along a cosine."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"}]


class _Meter(Callback):
    """Seconds of processor time from the first preparation to the last step, and the rows that the model read in it."""

    def __init__(self) -> None:
        self.seconds, self.rows = 0.0, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook = pl_module.model.register_forward_pre_hook(self._count)  # type: ignore[union-attr]
        # Not the time of day: several runs share the machine.
        self._start = time.process_time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.process_time() - self._start
        self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hook.remove()

    def _count(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.rows += len(inputs[0])


def train_cell(cell: Cell, models: str) -> Cell:
    """Train a model on the rows that are not to be forgotten, on all if none are, and keep its weights."""
    _settle(cell)
    recipe, seed = cell["recipe"], cell["seed"]
    train, _ = _rows(cell)
    forgets = any(key.startswith("forget") for key in cell["way"])
    # A retrained model starts from other weights than the one it is compared with.
    seed_everything(seed + 1000 * forgets, verbose=False)
    kept: Any = _data(cell, "retain").sets["retain"] if forgets else train
    module = _Scheduled(recipe["model"], recipe["model_args"], lr=recipe["lr"])
    meter = _Meter()
    # A last batch of one row would have no variance for batch normalization.
    loader = DataLoader(kept, _ROWS, shuffle=True, drop_last=len(kept) % _ROWS == 1)
    Trainer(max_epochs=recipe["epochs"], callbacks=[meter], **_QUIET).fit(module, loader)
    path = Path(models) / f"{cell_key(cell)}.pt"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    torch.save(module.model.state_dict(), part)
    part.rename(path)
    return {"seconds": meter.seconds, "rows": meter.rows, "steps": len(loader) * recipe["epochs"]}


def unlearn_cell(cell: Cell, models: str) -> Cell:
    """Unlearn with each setting, starting from the original model each time, and compare with the retrained one."""
    _settle(cell)
    retrained = _load(cell, "retrained", models)
    data = _data(cell)
    outputs = collect_outputs(retrained, data.val_dataloader())
    reference = outputs, _measured(outputs)
    return {"runs": [_unlearned(cell, setting, models, reference) for setting in cell["settings"]]}


def _unlearned(cell: Cell, setting: Cell, models: str, reference: tuple[dict[str, Outputs], dict[str, float]]) -> Cell:
    seed_everything(cell["seed"], verbose=False)
    cost: Cell = {}
    if "model" in setting:
        module, data = _load(cell, setting["model"], models), _data(cell)
    else:
        module, data = _load(cell, "original", models, setting["lr"]), _data(cell, setting["epoch"])
        callbacks = [_callback(callback, cell) for callback in setting["callbacks"]]
        meter = _Meter()
        trainer = Trainer(callbacks=[meter, *callbacks], max_epochs=setting["epochs"], gradient_clip_val=10.0, **_QUIET)
        try:
            trainer.fit(module, data)
        except FloatingPointError as error:
            return {"error": str(error)}
        cost = {"seconds": meter.seconds, "rows": meter.rows, "steps": trainer.global_step}
    try:
        outputs = collect_outputs(module, data.val_dataloader())
    except ValueError as error:
        return {"error": str(error)}
    return {**_compared(outputs, *reference), **cost}


def _callback(description: Cell, cell: Cell) -> Any:
    arguments = dict(description["init_args"])
    if "score" in arguments:
        arguments["score"] = resolve_name(arguments["score"])
    callback = instantiate_class((), {**description, "init_args": arguments})
    if hasattr(callback, "seed"):
        callback.seed = cell["seed"]  # what is drawn differs from seed to seed
    if hasattr(callback, "forget_class"):
        callback.forget_class = cell["way"].get("forget_class")
    return callback


def _measured(outputs: dict[str, Outputs]) -> dict[str, float]:
    """What is said of a model alone, in percent."""
    attack = MIAEfficacy()
    for role, part in (("member", "retain"), ("nonmember", "test"), ("forget", "forget")):
        attack.update(*outputs[part], role=role)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a feature that is the same everywhere says nothing, and its number shows it
        mia = attack.compute()
    measured = {
        "UA": float(unlearning_accuracy(*outputs["forget"])),
        "RA": float(accuracy(*outputs["retain"])),
        "TA": float(accuracy(*outputs["test"])),
        "MIA": mia["confidence"],
        **{f"MIA_{name}": value for name, value in mia.items()},
    }
    if "test_forget" in outputs:
        measured["test_forget_error"] = float(unlearning_accuracy(*outputs["test_forget"]))
    return measured


def _compared(outputs: dict[str, Outputs], others: dict[str, Outputs], retrained: dict[str, float]) -> Cell:
    measured = _measured(outputs)
    sides = [{name: values[name] for name in _COMPARED} for values in (measured, retrained)]
    accuracies = [{"forget": 100 - v["UA"], "retain": v["RA"], "test": v["TA"]} for v in (measured, retrained)]
    return {
        "metrics": measured,
        "gap": average_gap(*sides),
        "ToW": tow(*accuracies),
        "JS": float(js_divergence(outputs["forget"].logits, others["forget"].logits).mean()),
    }


def _settle(cell: Cell) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(cell["threads"])


def _rows(cell: Cell) -> tuple[Any, Any]:
    recipe = cell["recipe"]
    parts = []
    for part, more in (("train", {}), ("test", recipe["test_args"])):
        arguments = {**recipe["rows_args"], **more, "part": part, "seed": cell["seed"]}
        rows = instantiate_class((), {"class_path": recipe["rows"], "init_args": arguments})
        parts.append(CoarseLabels(rows, cell["way"]["coarse"]) if "coarse" in cell["way"] else rows)
    return parts[0], parts[1]


def _data(cell: Cell, epoch: Any = "forget") -> ClassificationDataModule:
    train, test = _rows(cell)
    way = {key: value for key, value in cell["way"].items() if key != "coarse"}
    seed = cell["seed"]
    return ClassificationDataModule(train, test, **way, split_seed=seed, batch_size=_ROWS, epoch=epoch, seed=seed)


def _load(cell: Cell, which: str, models: str, lr: float = 1e-3) -> LitClassifier:
    recipe = cell["recipe"]
    return LitClassifier(recipe["model"], recipe["model_args"], str(Path(models) / f"{cell[which]}.pt"), lr=lr)


# ---- what is written -----------------------------------------------------------------------------------------------


_HEADER = ("UA", "MIA", "RA", "TA", "gap ± CI", "ToW", "JS", "CPU s", "steps", "rows")


def table(record: dict[str, Any]) -> str:
    """Markdown: percentages as mean ± standard deviation over seeds, the gap with its 95 % confidence interval."""
    lines = []
    for name, scenario in record["scenarios"].items():
        lines += [f"{name}:", "", "| | " + " | ".join(_HEADER) + " |", "|---" * (len(_HEADER) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(_cells(runs)) + " |" for row, runs in _table_rows(scenario)]
        lines += ["", "| MIA by | " + " | ".join(FEATURES) + " |", "|---" * (len(FEATURES) + 1) + "|"]
        for row, runs in _table_rows(scenario):
            attacks = (_spread([run["metrics"][f"MIA_{feature}"] for run in _finished(runs)]) for feature in FEATURES)
            lines.append(f"| {row} | " + " | ".join(attacks) + " |")
        lines.append("")
    return "\n".join(lines)


def _table_rows(scenario: dict[str, Any]) -> list[tuple[str, list[Cell]]]:
    methods = {name: method["runs"] for name, method in scenario["methods"].items()}
    return list({"original": scenario["original"], "retrained": scenario["retrained"], **methods}.items())


def _finished(runs: list[Cell]) -> list[Cell]:
    return [run for run in runs if "error" not in run]


def _cells(runs: list[Cell]) -> list[str]:
    done = _finished(runs)
    if len(done) < len(runs):
        return [f"not finite in {len(runs) - len(done)} of {len(runs)} runs"] + [""] * (len(_HEADER) - 1)
    gap = over_seeds(torch.tensor([run["gap"] for run in done]))
    cells = [_spread([run["metrics"][key] for run in done]) for key in _COMPARED]
    cells.append(f"{gap.mean:.2f}" + (f" ± {gap.ci:.2f}" if math.isfinite(gap.ci) else ""))
    cells += [f"{statistics.mean(run[key] for run in done):.3f}" for key in ("ToW", "JS")]
    if "seconds" not in done[0]:
        return [*cells, "", "", ""]
    cells.append(f"{statistics.median(run['seconds'] for run in done):.1f}")
    return cells + [f"{statistics.median(run[key] for run in done):.0f}" for key in ("steps", "rows")]


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else ""


def _draw(record: dict[str, Any], path: Path) -> None:
    gaps = {
        name: {
            row: [run["gap"] for run in _finished(runs)] for row, runs in _table_rows(scenario) if row != "retrained"
        }
        for name, scenario in record["scenarios"].items()
    }
    ablation = record["ablation"]
    try:
        gap_figure(gaps).savefig(path.with_suffix(".svg"))
        if ablation:
            maps = {f"{method}, {name}": gap for method, by in ablation["gap"].items() for name, gap in by.items()}
            figure = heat_map_figure(maps, ablation["alpha"], ablation["p"], "α", "p", "average gap")
            figure.savefig(path.with_name(f"{path.name}-ablation.svg"))
    except ImportError as error:
        warnings.warn(f"The figures are not drawn. {error}", stacklevel=2)


def _log(record: dict[str, Any], project: str) -> None:
    try:
        import wandb
    except ImportError:
        raise ImportError('wandb_project needs wandb: pip install "lightning-unlearn[wandb]"') from None
    with wandb.init(project=project, config={key: record[key] for key in ("task", "seeds", "tuning_seeds")}) as run:
        for name, scenario in record["scenarios"].items():
            rows = [[row, *_cells(runs)] for row, runs in _table_rows(scenario)]
            run.log({name: wandb.Table(columns=["method", *_HEADER], data=rows)})
