"""Harness of the published benchmarks of language-model unlearning: targets, runs, attacks and tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_unlearn.benchmarks.entries import Setting
from lightning_unlearn.benchmarks.grid import Grid, Outcome, select, separate_seeds
from lightning_unlearn.benchmarks.language_base import (
    LanguageBenchmark,
    Protocol,
    located,
    question_row,
    row_losses,
)
from lightning_unlearn.benchmarks.language_figure import save_curves
from lightning_unlearn.benchmarks.language_requests import in_requests
from lightning_unlearn.benchmarks.language_runs import RunCell, TargetCell, train, unlearn
from lightning_unlearn.benchmarks.language_table import add_comparison, language_table, log_of
from lightning_unlearn.benchmarks.table import write_record
from lightning_unlearn.core.files import sha256
from lightning_unlearn.language.packaged import HUB_MODEL, packaged_model

__all__ = [
    "LanguageBenchmark",
    "Protocol",
    "RunCell",
    "TargetCell",
    "bench_language",
    "located",
    "question_row",
    "row_losses",
]


def bench_language(
    benchmark: LanguageBenchmark,
    output_dir: str | None = None,
    model: str | None = None,
    entries: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2),
    tuning_seed: int = 0,
    protocol: Protocol | None = None,
    requests: int = 1,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Train the reference models, tune and run each method, attack the results, and write a table.

    The original model is trained on all rows, and two retrained models on the rows to keep; the second one shows how
    much two retrained models differ. Each method runs with each of its settings on ``tuning_seed``. The best setting
    runs on ``seeds`` with all measurements, and is attacked on the first of them. Writes ``<name>.json``, ``<name>.md``
    and, with matplotlib, the curves of the attacks as ``<name>_*.svg``. The evaluation of each model is in ``logs/``,
    in the format of open-unlearning.

    Finished runs are kept: after a kill or with more entries, the same command runs what is missing.

    Args:
        benchmark: ``TOFUBenchmark``, ``MUSEBenchmark``, ``WMDPBenchmark``, ``CopyrightBenchmark``, ``DetoxBenchmark``
            or one of your own.
        output_dir: Folder to write; by default ``runs/<name>``.
        model: Hub id, folder or GGUF file of the model to start from; by default that of the demo.
        entries: Names of the methods to run; all if empty.
        seeds: Seeds that are reported.
        tuning_seed: Seed on which settings are chosen.
        protocol: How models are trained.
        requests: Number of sequential requests into which the forget rows are divided. Each request is unlearned from
            the model that the previous one left, and the earlier requests are measured again.
        threads: Threads of a run.
        workers: Runs at a time. With 0, runs are made in this process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``<name>.json`` holds.

    Raises:
        ValueError: If an entry is unknown, a seed is used for both, or the data can't be read.
    """
    separate_seeds([tuning_seed], seeds)
    in_requests(benchmark.rows()["forget"], requests)  # wrong data is found here, before any model is trained
    chosen = select("entries", entries, {entry.name: entry for entry in benchmark.entries})
    grid = Grid(output_dir or f"runs/{benchmark.name}", workers, keep_stale)
    source, protocol = model or packaged_model() or HUB_MODEL, protocol or Protocol()
    shared: Any = {
        **{"benchmark": benchmark.description, "protocol": protocol, "threads": threads},
        "data_sha256": _data_hash(benchmark.sources()),
    }
    targets = {
        name: TargetCell(**shared, seed=tuning_seed + name.endswith("again"), source=source, sets=sets)
        for name, sets in benchmark.targets.items()
    }
    folders = {name: outcome["files"][0] for name, outcome in grid.run(train, targets, "targets").items()}
    untouched = RunCell(**shared, seed=tuning_seed, model="", setting=Setting(lr=1.0), generate=True, attacked=True)
    anchors = grid.run(unlearn, {n: replace(untouched, model=f) for n, f in folders.items()}, "anchors")
    logs = {name: log_of(grid.folder, outcome) for name, outcome in anchors.items()}

    def cell(entry: str, setting: Setting, seed: int) -> RunCell:
        whole = seed != tuning_seed  # settings are chosen by likelihoods
        start = folders["original"]
        chosen: Any = {"setting": setting, "requests": requests, "seed": seed}
        return replace(untouched, model=start, **chosen, generate=whole, attacked=seed == seeds[0])

    def score(outcome: Outcome) -> float:
        if "error" in outcome:
            return 0.0
        return benchmark.score(log_of(grid.folder, outcome), logs["original"], logs.get("retrained"))

    methods = {name: entry.settings for name, entry in chosen.items()}
    tuned = grid.tune(unlearn, methods, cell, score, [tuning_seed], seeds)
    record: dict[str, Any] = {
        **{"model": Path(source).name, "library": version("lightning-unlearn")},
        **{**shared, "protocol": asdict(protocol)},
        **{"seeds": list(seeds), "tuning_seed": tuning_seed, "requests": requests},
        **{"anchors": anchors, "entries": tuned},
    }
    add_comparison(record, benchmark, grid.folder, logs)
    record = write_record(grid.folder / benchmark.name, record, language_table)
    save_curves(grid.folder, benchmark.name, record)
    return record


def _data_hash(sources: Iterable[str]) -> str:
    """Hash of the contents of local files; of rows on the hub, of their names alone."""
    digests = [sha256(source) if Path(source).is_file() else source for source in sources]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
