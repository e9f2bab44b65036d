"""Methods on the demo's facts: how much is forgotten, what else goes, and what it costs."""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import instantiate_class
from torch.utils.data import DataLoader

from lightning_unlearn.benchmarks.cells import Cell, cell_key, run_cells, write_atomically
from lightning_unlearn.benchmarks.entries import FACTS, WEIGHTS, Entry
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.core.plots import outcome_figure
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule, collate_tokens
from lightning_unlearn.language.monitor import UnlearnMonitor
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.weights.random_mask import RandomMask
from lightning_unlearn.weights.wagle import WAGLE

__all__ = ["bench_facts"]

STUDIES: dict[str, tuple[Entry, ...]] = {"objectives": FACTS, "weights": WEIGHTS}
SETS = ("forget", "retain", "heldout", "general")
_QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "gradient_clip_val": 1.0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}


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
) -> dict[str, Any]:
    """Compare methods at an equal tuning budget on the capitals that the demo forgets.

    Each entry runs once with each of its settings on ``tuning_seed``. The setting with the highest score, half the
    share of wrong forget answers plus half the mean accuracy on the three other sets, runs on ``seeds``. Writes
    ``<study>.json``, ``<study>.md`` and, with matplotlib, ``<study>.svg``. Finished runs are kept in ``runs/`` there:
    after a kill, or with more entries, the same command goes on.

    Args:
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of a chat model; by default the demo's.
        study: ``"objectives"``, all of them; or ``"weights"``, three of them dense, under weight masks and with SOUL.
        entries: Names of the study's entries to run; all if empty.
        seeds: Seeds that are reported.
        tuning_seed: Seed that settings are chosen on.
        steps: Updates a run.
        precision: Precision of the Trainer.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are quicker than one of two.

    Returns:
        What ``<study>.json`` holds.

    Raises:
        ValueError: If a study or an entry is unknown.
    """
    known = STUDIES.get(study)
    if known is None:
        raise ValueError(f"study must be one of {sorted(STUDIES)}, but got {study!r}.")
    unknown = sorted(set(entries) - {entry.name for entry in known})
    if unknown:
        raise ValueError(f"There are no entries {unknown}. There are {[entry.name for entry in known]}.")
    chosen = [entry for entry in known if not entries or entry.name in entries]
    folder = Path(output_dir)
    source = model or packaged_model() or HUB_MODEL
    models = folder / "models" / cell_key({"model": source})
    start = _written(models / "start", lambda: LitCausalLM(source))
    if any("reinforced" in json.dumps(entry.settings) for entry in chosen):
        _written(models / "reinforced", lambda: _reinforced(start, steps))
    run = {
        "model_sha256": sha256(start / "model.safetensors"),
        "data_sha256": sha256(*sorted(FACTS_FOLDER.glob("*.jsonl"))),
        "library": version("lightning-unlearn"),
        **{"steps": steps, "precision": precision, "threads": threads},
    }

    def results(cells: list[Cell], description: str) -> list[Cell]:
        return run_cells(cells, partial(run_cell, models=str(models.resolve())), folder / "runs", workers, description)

    (before,) = results([{**run, "seed": tuning_seed, "lr": 1.0, "callbacks": [], "steps": 0}], "before")
    tuning = [(entry, setting) for entry in chosen for setting in entry.settings]
    tuned = results([{**run, **setting, "seed": tuning_seed} for _, setting in tuning], "tuning")
    best: dict[str, tuple[dict[str, Any], Cell]] = {}
    for (entry, setting), result in zip(tuning, tuned, strict=True):
        if entry.name not in best or score(result) > score(best[entry.name][1]):
            best[entry.name] = setting, result
    repeats = [(name, seed) for name in best for seed in seeds]
    found = results([{**run, **best[name][0], "seed": seed} for name, seed in repeats], "seeds")
    rows = {
        name: {
            "setting": best[name][0],
            "tuning": [{**s, **r} for (e, s), r in zip(tuning, tuned, strict=True) if e.name == name],
            "runs": [result for (other, _), result in zip(repeats, found, strict=True) if other == name],
        }
        for name in best
    }
    record = {
        **run,
        "model": Path(source).name,
        "seeds": list(seeds),
        "tuning_seed": tuning_seed,
        "before": before,
        "entries": rows,
    }
    write_atomically(folder / f"{study}.json", json.dumps(record, indent=2) + "\n")
    text = table(record)
    write_atomically(folder / f"{study}.md", text)
    _draw(record, folder / f"{study}.svg")
    print(text)
    return record


def score(result: Cell) -> float:
    """Half the share of wrong forget answers, half the mean accuracy elsewhere; 0 for a run that had to stop."""
    if "error" in result:
        return 0.0
    metrics = result["metrics"]
    kept = statistics.mean(metrics[f"{name}_accuracy"] for name in SETS[1:])
    return (1 - metrics["forget_accuracy"] + kept) / 2


def run_cell(cell: Cell, models: str) -> Cell:
    """One run, from loading the model to the last answer; its paths are relative to the folder of models."""
    os.chdir(models)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(cell["threads"])
    seed_everything(cell["seed"], verbose=False)
    module = LitCausalLM("start", lr=cell["lr"])
    data = facts(cell["seed"])
    if "optimizer" in cell:
        optimizer = {**cell["optimizer"], "init_args": {**cell["optimizer"]["init_args"], "lr": cell["lr"]}}
        module.configure_optimizers = lambda: instantiate_class(module.parameters(), optimizer)  # type: ignore[method-assign]
    callbacks = [instantiate_class((), callback) for callback in cell["callbacks"]]
    for mask in (callback for callback in callbacks if isinstance(callback, (RandomMask, WAGLE))):
        mask.seed = cell["seed"]  # what is drawn differs from seed to seed
    # Where a run diverges, its last finite checkpoint is of no use here.
    with tempfile.TemporaryDirectory() as scratch:
        options = {"max_steps": cell["steps"], "precision": cell["precision"], "default_root_dir": scratch}
        trainer = Trainer(callbacks=callbacks, **_QUIET, **options)
        start = time.perf_counter()
        try:
            trainer.fit(module, data)
        except FloatingPointError as error:
            return {"error": str(error)}
        seconds = time.perf_counter() - start
        memory = peak_memory("cpu")
        evaluation = UnlearnMonitor().evaluate(trainer, module)
    answers = [vars(example) for example in evaluation.examples]
    return {"metrics": evaluation.metrics, "seconds": seconds, "peak_memory_bytes": memory, "answers": answers}


def facts(seed: int) -> LanguageDataModule:
    """The demo's rows: four to forget and six to keep a step."""
    return LanguageDataModule(
        forget=FACTS_FOLDER / "forget.jsonl",
        retain=FACTS_FOLDER / "retain.jsonl",
        heldout={name: FACTS_FOLDER / f"{name}.jsonl" for name in ("heldout", "general")},
        batch_size=4,
        retain_batch_size=6,
        seed=seed,
    )


def _written(folder: Path, make: Callable[[], LitCausalLM]) -> Path:
    """A model as a folder that every run opens quickly."""
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        make().save_pretrained(part)
        part.rename(folder)
    return folder


def _reinforced(start: Path, steps: int) -> LitCausalLM:
    """The starting model, trained further on what is to be forgotten."""
    module = LitCausalLM(str(start))
    data = facts(0)
    data.prompt = PromptFormat(module.tokenizer)
    data.setup("fit")
    loader = DataLoader(data.sets["forget"], batch_size=4, shuffle=True, collate_fn=collate_tokens)
    Trainer(max_steps=steps, **_QUIET).fit(module, loader)
    return module


def table(record: dict[str, Any]) -> str:
    """Markdown: accuracy in percent and NLL per token, mean ± standard deviation over the seeds."""
    lines = [
        "| | lr | " + " | ".join(f"{name} %" for name in SETS) + " | NLL " + " | NLL ".join(SETS) + " | s | GiB |",
        "|---" * 12 + "|",
        _row("before", "", [record["before"]], costs=False),
    ]
    for name, entry in record["entries"].items():
        runs = [run for run in entry["runs"] if "error" not in run]
        rate = f"{entry['setting']['lr']:.0e}".replace("e-0", "e-")
        if len(runs) == len(entry["runs"]):
            lines.append(_row(name, rate, runs))
        else:
            failed = len(entry["runs"]) - len(runs)
            lines.append(f"| {name} | {rate} | stopped on a value that is not finite in {failed} runs |" + " |" * 9)
    return "\n".join(lines) + "\n"


def _row(name: str, rate: str, runs: list[Cell], costs: bool = True) -> str:
    def values(key: str, scale: float, digits: int) -> str:
        numbers = [scale * run["metrics"][key] for run in runs]
        spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        return f"{statistics.mean(numbers):.{digits}f}{spread}"

    cells = [values(f"{part}_accuracy", 100, 0) for part in SETS] + [values(f"{part}_nll", 1, 2) for part in SETS]
    if costs:
        cells.append(f"{statistics.median(run['seconds'] for run in runs):.0f}")
        cells.append(f"{max(run['peak_memory_bytes'] for run in runs) / 2**30:.1f}")
    else:
        cells += ["", ""]
    return f"| {name} | {rate} | " + " | ".join(cells) + " |"


def _draw(record: dict[str, Any], path: Path) -> None:
    rows = {"before": [record["before"]["metrics"]]} | {
        name: [run["metrics"] for run in entry["runs"] if "error" not in run]
        for name, entry in record["entries"].items()
    }
    try:
        figure = outcome_figure(rows, SETS)
    except ImportError as error:
        warnings.warn(f"The figure is not drawn. {error}", stacklevel=2)
        return
    figure.savefig(path)
