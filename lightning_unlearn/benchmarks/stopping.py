"""Comparison of runs that stop when enough is forgotten with runs whose number of steps was set by hand."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_unlearn.benchmarks.entries import FACTS, Setting
from lightning_unlearn.benchmarks.facts import SETS, FactsCell, ModelCell, facts, prepare
from lightning_unlearn.benchmarks.facts import unlearn as measured
from lightning_unlearn.benchmarks.grid import Cell, Grid, Outcome, select
from lightning_unlearn.benchmarks.runs import build, quiet_libraries, trainer
from lightning_unlearn.benchmarks.table import markdown, spread, write_record
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.lightning import Callback, LightningModule, Trainer, seed_everything
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.monitor import UnlearnMonitor
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model
from lightning_unlearn.stopping.stop_when_forgotten import StopWhenForgotten

__all__ = ["bench_stopping"]

METHODS = ("SimNPO", "NPO", "GradDiff", "WGA")
_LR = 1e-5  # of the demo, for all: none is tuned for where it stops


@dataclass(frozen=True, kw_only=True)
class StopCell(Cell):
    """A method's run of ``steps`` updates, which records where it would have stopped by itself."""

    model: str
    data_sha256: str
    steps: int
    every_n_steps: int
    precision: str
    setting: Setting


def bench_stopping(
    output_dir: str = "runs/stopping",
    model: str | None = None,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 30,
    every_n_steps: int = 2,
    precision: str = "32-true",
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Compare where `StopWhenForgotten` ends a run with a number of steps that was set by hand.

    Each method forgets the capitals of the demo with its settings. A run makes all steps; the weights that it would
    have ended with by itself and those of its last step are both measured. Writes ``stopping.json`` and
    ``stopping.md``. Finished runs are kept in ``runs/``: the same command, after a kill, runs what is missing.

    Args:
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of a chat model; by default the demo's.
        methods: Names of entries of `bench-facts`.
        seeds: Seeds of the runs.
        steps: Updates of a run, the number that was set by hand.
        every_n_steps: Updates between two measurements of `StopWhenForgotten`.
        precision: Precision of the Trainer.
        threads: Threads of a run.
        workers: Runs at a time. With 0, runs are made in this process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``stopping.json`` holds.

    Raises:
        ValueError: If a method is unknown.
    """
    known = {entry.name: Setting(_LR, entry.settings[0].callbacks) for entry in FACTS}
    chosen = select("methods", methods, known)
    grid, source = Grid(output_dir, workers, keep_stale), model or packaged_model() or HUB_MODEL
    prepared = grid.run(prepare, {"start": ModelCell(seed=0, threads=threads, source=source)}, "model")["start"]
    (folder,) = prepared["files"]
    data_sha256 = sha256(*(FACTS_FOLDER / f"{name}.jsonl" for name in sorted(SETS)))
    shared: Any = {"model": folder, "data_sha256": data_sha256, "precision": precision, "threads": threads}
    start = FactsCell(**shared, steps=0, setting=Setting(lr=1.0), seed=0)
    before = grid.run(measured, {"before": start}, "before")
    run: Any = {"steps": steps, "every_n_steps": every_n_steps}
    cells = {
        (name, seed): StopCell(**shared, **run, setting=setting, seed=seed)
        for name, setting in chosen.items()
        for seed in seeds
    }
    outcomes = grid.run(unlearn, cells, "runs")
    record = {
        **{"model": Path(source).name, "model_sha256": prepared["sha256"], "library": version("lightning-unlearn")},
        **{"data_sha256": data_sha256, "precision": precision, "threads": threads, "lr": _LR, "seeds": list(seeds)},
        **{**run, **before},
        "methods": {name: [outcomes[name, seed] for seed in seeds] for name in chosen},
    }
    return write_record(grid.folder / "stopping", record, table)


class _AtTheEnd(Callback):
    """Measures the model with the weights of the last step; it stands before the callback that exchanges them."""

    def __init__(self, steps: int) -> None:
        self.steps, self.metrics = steps, dict[str, float]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.steps:
            self.metrics = UnlearnMonitor().evaluate(trainer, pl_module).metrics


def unlearn(cell: StopCell, folder: Path) -> Outcome:
    """One run, measured before it, with the weights it would have ended with, and with those of its last step."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    module = LitCausalLM(str(folder / cell.model), lr=cell.setting.lr)
    stop, end = StopWhenForgotten(every_n_steps=cell.every_n_steps), _AtTheEnd(cell.steps)
    objectives = build(cell.setting.callbacks, seed=cell.seed)
    with tempfile.TemporaryDirectory() as scratch:
        options: Any = {"precision": cell.precision, "gradient_clip_val": 1.0, "default_root_dir": scratch}
        # By min_steps a run goes on that would end, and has the weights it would have ended with all the same.
        run = trainer([*objectives, end, stop], min_steps=cell.steps, max_steps=cell.steps, **options)
        start = time.process_time()
        try:
            run.fit(module, facts(cell.seed))
        except FloatingPointError as error:
            return {"error": str(error)}
        seconds = time.process_time() - start
        stopped = UnlearnMonitor().evaluate(run, module).metrics
    assert stop.outcome is not None
    return {
        "reached": stop.outcome.reached,
        "step": stop.outcome.step,
        "ended": stop.curve[-1]["step"],
        "target": stop.outcome.target,
        "curve": stop.curve,
        "stopped": stopped,
        "by_hand": end.metrics,
        "cpu_seconds": seconds,
    }


def table(record: dict[str, Any]) -> str:
    """Markdown: the step whose weights are given back, the last step, and accuracies with both, mean ± deviation."""
    rows = [["before", "", "", "", *_measures([record["before"]], "metrics")]]
    for name, runs in record["methods"].items():
        done = [run for run in runs if "error" not in run]
        if failed := len(runs) - len(done):
            rows.append([name, f"stopped on a value that is not finite in {failed} runs"])
            continue
        reached = f"{sum(run['reached'] for run in done)}/{len(done)}"
        first = [spread([run[key] for run in done], 0) for key in ("step", "ended")]
        rows.append([f"{name}, by itself", reached, *first, *_measures(done, "stopped")])
        rows.append([f"{name}, by hand", "", str(record["steps"]), str(record["steps"]), *_measures(done, "by_hand")])
    header = ["", "reached", "weights of step", "ended at step", *(f"{name} %" for name in SETS), "NLL forget"]
    return markdown(header, rows)


def _measures(runs: list[Outcome], which: str) -> list[str]:
    accuracies = [spread([100 * run[which][f"{name}_accuracy"] for run in runs], 0) for name in SETS]
    return [*accuracies, spread([run[which]["forget_nll"] for run in runs], 2)]
