"""Comparison of language-model methods on facts: what is forgotten, what else is lost, and the cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from lightning_unlearn.benchmarks.entries import FACTS, WEIGHTS, Setting
from lightning_unlearn.benchmarks.grid import Cell, Grid, Outcome, select
from lightning_unlearn.benchmarks.runs import build, quiet_libraries, takes, trainer
from lightning_unlearn.benchmarks.table import markdown, save_figure, spread, write_record
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.files import replacing, sha256
from lightning_unlearn.core.lightning import resolve, seed_everything
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.core.plots import outcome_figure
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.data.token_rows import collate_tokens
from lightning_unlearn.language.monitor import UnlearnMonitor
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["bench_facts"]

STUDIES = {"objectives": FACTS, "weights": WEIGHTS}
SETS = ("forget", "retain", "heldout", "general")


@dataclass(frozen=True, kw_only=True)
class ModelCell(Cell):
    """An original model: a hub id, folder or GGUF file, and the number of training steps on the forget rows."""

    source: str
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class FactsCell(Cell):
    """A setting of a method; models are given as folders that are named by the hash of their weights."""

    model: str
    reinforced: str | None = None
    data_sha256: str
    steps: int
    precision: str
    setting: Setting


def bench_facts(
    output_dir: str = "runs/facts",
    model: str | None = None,
    study: Literal["objectives", "weights"] = "objectives",
    entries: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    tuning_seed: int = 0,
    steps: int = 40,
    precision: str = "bf16-mixed",
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Compare methods at an equal tuning budget on the capitals that the demo forgets.

    Each entry runs once with each of its settings on ``tuning_seed``. The setting with the highest score then runs on
    ``seeds``; the score is half the share of wrong forget answers plus half the mean accuracy on the three other sets.
    Writes ``<study>.json``, ``<study>.md`` and, with matplotlib, ``<study>.svg``. Finished runs are kept in ``runs/``:
    after a kill or with more entries, the same command runs what is missing, and repeats what ran on code that has
    changed.

    Args:
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of a chat model; by default the demo's.
        study: ``"objectives"``, all of them; or ``"weights"``, three of them dense, under weight masks and with SOUL.
        entries: Names of the study's entries to run; all if empty.
        seeds: Seeds that are reported.
        tuning_seed: Seed on which settings are chosen; the published tables report it too.
        steps: Updates of a run.
        precision: Precision of the Trainer.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are faster than one of two. With 0, runs are made in this
            process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``<study>.json`` holds.

    Raises:
        ValueError: If a study or an entry is unknown.
    """
    known = {entry.name: entry.settings for entry in STUDIES[one_of("study", study, STUDIES)]}
    chosen = select("entries", entries, known)
    grid, source = Grid(output_dir, workers, keep_stale), model or packaged_model() or HUB_MODEL
    start = ModelCell(seed=0, threads=threads, source=source)
    prepared = grid.run(prepare, {"start": start}, "model")["start"]
    (folder,) = prepared["files"]
    if any(_reads_reinforced(setting) for settings in chosen.values() for setting in settings):
        trained = grid.run(prepare, {"reinforced": replace(start, source=folder, steps=steps)}, "reinforced model")
        (reinforced,) = trained["reinforced"]["files"]
    data_sha256 = sha256(*(FACTS_FOLDER / f"{name}.jsonl" for name in sorted(SETS)))
    run: Any = {"data_sha256": data_sha256, "steps": steps, "precision": precision, "threads": threads}

    def cell(entry: str, setting: Setting, seed: int) -> FactsCell:
        extra = reinforced if _reads_reinforced(setting) else None
        return FactsCell(**run, model=folder, reinforced=extra, setting=setting, seed=seed)

    before = grid.run(unlearn, {"before": replace(cell("", Setting(lr=1.0), tuning_seed), steps=0)}, "before")
    record = {
        **{"model": Path(source).name, "model_sha256": prepared["sha256"], "library": version("lightning-unlearn")},
        **{**run, "seeds": list(seeds), "tuning_seed": tuning_seed, **before},
        "entries": grid.tune(unlearn, chosen, cell, score, [tuning_seed], seeds),
    }
    record = write_record(grid.folder / study, record, table)
    save_figure(grid.folder / f"{study}.svg", lambda: figure(record))
    return record


def _reads_reinforced(setting: Setting) -> bool:
    return any(takes(callback, "reinforced") for callback in setting.callbacks)


def score(outcome: Outcome) -> float:
    """Half the share of wrong forget answers, half the mean accuracy elsewhere; 0 for a run that had to stop."""
    if "error" in outcome:
        return 0.0
    forget, *kept = (outcome["metrics"][f"{name}_accuracy"] for name in SETS)
    return (1 - forget + float(np.mean(kept))) / 2


def prepare(cell: ModelCell, folder: Path) -> Outcome:
    """Save a model as a folder that every run opens quickly."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    local = folder / cell.source
    module = LitCausalLM(str(local) if local.exists() else cell.source)
    if cell.steps:
        data = facts(cell.seed)
        data.prompt = PromptFormat(module.tokenizer)
        data.setup("fit")
        loader = DataLoader(data.sets["forget"], batch_size=4, shuffle=True, collate_fn=collate_tokens)
        trainer(max_steps=cell.steps, gradient_clip_val=1.0).fit(module, loader)
    draft = folder / "models" / cell.key
    module.save_pretrained(draft)
    digest = sha256(*sorted(draft.glob("*.safetensors")))
    with replacing(folder / "models" / digest[:16]) as part:
        draft.rename(part)
    return {"sha256": digest, "files": [f"models/{digest[:16]}"]}


def unlearn(cell: FactsCell, folder: Path) -> Outcome:
    """One run, from loading the model to the last answer."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    module = LitCausalLM(str(folder / cell.model), lr=cell.setting.lr)
    if optimizer := cell.setting.optimizer:
        described = {**optimizer, "init_args": {**optimizer["init_args"], "lr": cell.setting.lr}}
        module.configure_optimizers = lambda: resolve("cli.instantiate_class")(module.parameters(), described)  # type: ignore[method-assign]
    callbacks = build(cell.setting.callbacks, seed=cell.seed, reinforced=str(folder / (cell.reinforced or "")))
    # If a run diverges, its last finite checkpoint is of no use here.
    with tempfile.TemporaryDirectory() as scratch:
        options: Any = {"precision": cell.precision, "gradient_clip_val": 1.0, "default_root_dir": scratch}
        run = trainer(callbacks, max_steps=cell.steps, **options)
        start = time.perf_counter()
        try:
            run.fit(module, facts(cell.seed))
        except FloatingPointError as error:
            return {"error": str(error)}
        cost = {"seconds": time.perf_counter() - start, "peak_memory_bytes": peak_memory("cpu")}
        evaluation = UnlearnMonitor().evaluate(run, module)
    return {"metrics": evaluation.metrics, **cost, "answers": [vars(example) for example in evaluation.examples]}


def facts(seed: int) -> LanguageDataModule:
    """The demo's rows: four to forget and six to keep a step."""
    forget, retain, *others = (FACTS_FOLDER / f"{name}.jsonl" for name in SETS)
    heldout = dict(zip(SETS[2:], others, strict=True))
    return LanguageDataModule(forget, retain, heldout=heldout, batch_size=4, retain_batch_size=6, seed=seed)


def table(record: dict[str, Any]) -> str:
    """Markdown: accuracy in percent and NLL per token, mean ± standard deviation over the seeds."""
    rows = [["before", "", *_measures([record["before"]])]]
    for name, entry in record["entries"].items():
        runs = [run for run in entry["runs"] if "error" not in run]
        rows.append([name, f"{entry['setting']['lr']:.0e}".replace("e-0", "e-")])
        if failed := len(entry["runs"]) - len(runs):
            rows[-1].append(f"stopped on a value that is not finite in {failed} runs")
        else:
            memory = max(run["peak_memory_bytes"] for run in runs) / 2**30
            rows[-1] += [*_measures(runs), f"{np.median([run['seconds'] for run in runs]):.0f}", f"{memory:.1f}"]
    return markdown(["", "lr", *(f"{s} %" for s in SETS), *(f"NLL {s}" for s in SETS), "s", "GiB"], rows)


def _measures(runs: list[Outcome]) -> list[str]:
    accuracies = [spread([100 * run["metrics"][f"{name}_accuracy"] for run in runs], 0) for name in SETS]
    return accuracies + [spread([run["metrics"][f"{name}_nll"] for run in runs], 2) for name in SETS]


def figure(record: dict[str, Any]) -> Any:
    """Accuracies of each entry on each seed."""
    runs = {"before": [record["before"]]} | {name: entry["runs"] for name, entry in record["entries"].items()}
    return outcome_figure({n: [r["metrics"] for r in rs if "error" not in r] for n, rs in runs.items()}, SETS)
