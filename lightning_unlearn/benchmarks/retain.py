"""Comparison of given retain rows with the original model's own answers, on the facts of the demo."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.benchmarks.facts import ModelCell, prepare
from lightning_unlearn.benchmarks.grid import Cell, Grid, Outcome, select
from lightning_unlearn.benchmarks.runs import Description, build, describe, quiet_libraries, trainer
from lightning_unlearn.benchmarks.table import markdown, spread, write_record
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.lightning import seed_everything
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.data.own_answers import OwnAnswers
from lightning_unlearn.language.monitor import UnlearnMonitor
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model

__all__ = ["bench_retain"]


OBJECTIVES = {"SimNPO": describe("SimNPO", beta=2.5), "NPO": describe("NPO")}
ROWS: dict[str, str] = {
    "given": "given rows",
    "greedy": "own answers",
    "sampled": "own answers, sampled",
    "none": "none",
}
FILES = {"forget": "forget", "alike": "retain", "heldout": "heldout", "general": "general"}
"""Files of the demo by the names they have here: ``alike`` are the capitals that the given rows retain."""

UNSEEN = 64
"""Neutral questions that no run trains on."""


@dataclass(frozen=True, kw_only=True)
class AnswersCell(Cell):
    """Questions to ask the original model, a folder that is named by the hash of its weights."""

    model: str
    rows: str
    first: int
    count: int
    questions: str


@dataclass(frozen=True, kw_only=True)
class RetainCell(Cell):
    """A run with an objective and retain rows; ``answers`` is the hash of the answers that the model has written."""

    model: str
    rows: str
    objective: Description | None
    lr: float
    steps: int
    precision: str
    count: int
    data_sha256: str
    answers: str


def bench_retain(
    output_dir: str = "runs/retain",
    model: str | None = None,
    objectives: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 30,
    lr: float = 1e-5,
    count: int = 192,
    precision: str = "32-true",
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Forget the demo's capitals with the demo's retain rows, with the model's own answers, and without retain rows.

    Writes ``retain.json`` and ``retain.md``. Finished runs are kept in ``runs/``: the same command, after a kill, runs
    what is missing and what ran on code that has changed.

    Args:
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of a chat model; by default the demo's.
        objectives: Of ``SimNPO`` and ``NPO``; both if empty.
        rows: What is retained: of ``given``, ``greedy``, ``sampled`` (own answers) and ``none``; all if empty.
        seeds: Seeds of the runs.
        steps: Updates of a run, as many as the demo's.
        lr: Learning rate, the demo's.
        count: Neutral questions that are answered for training; the last ones are kept for measuring.
        precision: Precision of the Trainer.
        threads: Threads of a run.
        workers: Runs at a time. With 0, runs are made in this process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``retain.json`` holds.

    Raises:
        ValueError: If an objective or a kind of rows is unknown, or ``count`` leaves no question to measure.
    """
    chosen, kinds = select("objectives", objectives, OBJECTIVES), select("rows", rows, ROWS)
    asked = len(OwnAnswers().asked())
    if at_least("count", count, 1) > asked - UNSEEN:
        raise ValueError(f"count must be at most {asked - UNSEEN}, since {UNSEEN} questions are kept, but got {count}.")
    grid, source = Grid(output_dir, workers, keep_stale), model or packaged_model() or HUB_MODEL
    start = ModelCell(seed=0, threads=threads, source=source)
    prepared = grid.run(prepare, {"start": start}, "model")["start"]
    (folder,) = prepared["files"]
    questions = {
        kind: AnswersCell(
            **{"seed": 0, "threads": threads, "model": folder, "rows": kind, "first": first, "count": number},
            questions=sha256(FACTS_FOLDER.parent / "neutral_questions.jsonl"),
        )
        for kind, first, number in (("greedy", 0, count), ("sampled", 0, count), ("unseen", asked - UNSEEN, UNSEEN))
        if kind in kinds or kind == "unseen"
    }
    written = grid.run(ask, questions, "own answers")
    fixed: Any = {
        **{"model": folder, "lr": lr, "precision": precision, "count": count, "threads": threads},
        "data_sha256": sha256(*(FACTS_FOLDER / f"{name}.jsonl" for name in FILES.values())),
    }
    hashes = [written["unseen"]["sha256"]]

    def cell(objective: Description | None, kind: str, seed: int, updates: int) -> RetainCell:
        answers = "/".join([*hashes, *([written[kind]["sha256"]] if kind in written else [])])
        return RetainCell(**fixed, rows=kind, objective=objective, steps=updates, answers=answers, seed=seed)

    before = grid.run(unlearn, {"before": cell(None, "given", seeds[0], 0)}, "before")["before"]
    cells = {(n, k, s): cell(o, k, s, steps) for n, o in chosen.items() for k in kinds for s in seeds}
    runs = grid.run(unlearn, cells, "runs")
    record = {
        **{"model": Path(source).name, "model_sha256": prepared["sha256"], "library": version("lightning-unlearn")},
        **{**fixed, "steps": steps, "seeds": list(seeds), "answers": written, "before": before},
        "runs": {name: {kind: [runs[name, kind, seed] for seed in seeds] for kind in kinds} for name in chosen},
    }
    return write_record(grid.folder / "retain", record, table)


def ask(cell: AnswersCell, folder: Path) -> Outcome:
    """Write the answers of the original model into the cache that the runs read."""
    quiet_libraries("transformers")
    module = LitCausalLM(str(folder / cell.model))
    start = time.process_time()
    found = _answers(cell.rows, cell.first, cell.count, folder).answers(module, FACTS_FOLDER / "forget.jsonl")
    counts = {name: value for name, value in found._asdict().items() if name != "rows"}
    return {"seconds": time.process_time() - start, "kept": len(found.rows), **counts}


def _answers(kind: str, first: int, count: int, folder: Path) -> OwnAnswers:
    """The source of some of the shipped questions."""
    questions = OwnAnswers().asked()[first : first + count]
    temperature = 1.0 if kind == "sampled" else 0.0
    return OwnAnswers(
        [{"question": text} for text in questions],
        shipped=False,
        temperature=temperature,
        cache=str(folder / "own_answers"),
    )


def unlearn(cell: RetainCell, folder: Path) -> Outcome:
    """One run, from loading the model to the last answer."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    module = LitCausalLM(str(folder / cell.model), lr=cell.lr)
    forget, alike, *others = (FACTS_FOLDER / f"{name}.jsonl" for name in FILES.values())
    unseen = _answers("unseen", len(OwnAnswers().asked()) - UNSEEN, UNSEEN, folder).answers(module, forget)
    own = _answers(cell.rows, 0, cell.count, folder) if cell.rows in ("greedy", "sampled") else None
    data = LanguageDataModule(
        forget,
        own or (alike if cell.rows == "given" else None),
        heldout={"alike": alike, **dict(zip(list(FILES)[2:], others, strict=True)), "neutral": unseen.rows},
        **{"batch_size": 4, "retain_batch_size": 6, "seed": cell.seed},  # type: ignore[arg-type]
    )
    extra = {"retain_weight": 0.0} if cell.rows == "none" else {}
    callbacks = build([cell.objective] if cell.objective else [], **extra)
    monitor = UnlearnMonitor(questions={name: FACTS_FOLDER / f"{file}.jsonl" for name, file in FILES.items()})
    with tempfile.TemporaryDirectory() as scratch:
        options: Any = {"precision": cell.precision, "gradient_clip_val": 1.0, "default_root_dir": scratch}
        run = trainer(callbacks, max_steps=cell.steps, **options)
        start = time.process_time()
        try:
            run.fit(module, data)
        except FloatingPointError as error:
            return {"error": str(error)}
        seconds = time.process_time() - start
        evaluation = monitor.evaluate(run, module)
    answers = [vars(example) for example in evaluation.examples]
    return {"metrics": evaluation.metrics, "seconds": seconds, "answers": answers}


def table(record: dict[str, Any]) -> str:
    """Markdown: answered right in percent and NLL per token, mean ± standard deviation over the seeds."""
    rows = [["before", "", *_measures([record["before"]])]]
    for name, kinds in record["runs"].items():
        for kind, outcomes in kinds.items():
            runs = [run for run in outcomes if "error" not in run]
            rows.append([name, ROWS[kind], *_measures(runs)])
            if failed := len(outcomes) - len(runs):
                rows[-1].append(f"stopped on a value that is not finite in {failed} runs")
            else:
                rows[-1].append(f"{np.median([run['seconds'] for run in runs]):.0f}")
    nlls = [f"NLL {name}" for name in _NLLS]
    return markdown(["", "retained", *(f"{name} %" for name in FILES), *nlls, "CPU s"], rows)


_NLLS = ("forget", "alike", "general", "neutral")


def _measures(runs: list[Outcome]) -> list[str]:
    accuracies = [spread([100 * run["metrics"][f"{name}_accuracy"] for run in runs], 0) for name in FILES]
    return accuracies + [spread([run["metrics"][f"{name}_nll"] for run in runs], 2) for name in _NLLS]
