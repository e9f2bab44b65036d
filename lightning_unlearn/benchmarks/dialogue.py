"""Comparison of dialogue judges with human ratings on the data set User Satisfaction Simulation (USS)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.audit.precision import resolved
from lightning_unlearn.benchmarks.dialogue_figure import judge_figure
from lightning_unlearn.benchmarks.dialogue_findings import agreement, findings, rated
from lightning_unlearn.benchmarks.dialogue_runs import BaselineCell, DataCell, JudgeCell, LoRASetting, baseline, judged
from lightning_unlearn.benchmarks.grid import Grid, Outcome, select
from lightning_unlearn.benchmarks.table import markdown, save_figure, write_record
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.files import sha256
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.data.uss import USSSubset
from lightning_unlearn.language.packaged import HUB_MODEL, packaged_model

__all__ = ["bench_dialogue"]

ENTRIES: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "random 4-shot": {"examples": "random"},
    "BM25 4-shot": {"examples": "bm25"},
    "dense 4-shot": {"examples": "dense"},
    "zero-shot, text": {"route": "text"},
    "rating first": {"mode": "rating_first"},
    "analysis first": {"mode": "analysis_first"},
    "rating first, text": {"mode": "rating_first", "route": "text"},
    "analysis first, text": {"mode": "analysis_first", "route": "text"},
    "fine-tuned, soft labels": {"lora": LoRASetting("soft")},
    "fine-tuned, expected score": {"lora": LoRASetting("mean")},
    "linear probe": {"probe": True},
    "linear probe, known-bad": {"probe": True, "known_bad": True},
}
"""What is run of each model, as fields of its cell."""

BASELINES: dict[str, dict[str, Any]] = {
    "TF-IDF + ridge": {"kind": "ridge"},
    "BM25 nearest 4": {"kind": "neighbours", "k": 4},
    "BM25 nearest 16": {"kind": "neighbours", "k": 16},
}


def bench_dialogue(
    path: str,
    output_dir: str = "runs/dialogue",
    models: Sequence[str] = (),
    subsets: Sequence[USSSubset] = ("SGD", "MWOZ"),
    entries: Sequence[str] = (),
    test: int = 160,
    train: int = 400,
    epochs: int = 4,
    lr: float = 1.5e-3,
    last_layers: int | None = 10,
    max_length: int = 768,
    shots_length: int = 3072,
    example_length: int | None = None,
    max_new_tokens: int = 64,
    precision: str = "auto",
    seed: int = 0,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Compare judges of dialogues with people, and decide which findings of the paper hold.

    Each model rates the same held-out dialogues of each subset: without examples, with random and selected ones, from
    logits and from text, with the analysis before and after the rating, fine-tuned, and with a linear probe on its
    hidden states. Beside them stand predictors without a language model. Writes ``dialogue.json``, ``dialogue.md`` and,
    with matplotlib, ``dialogue_<model>.svg``: scores of the best judge that has learned from ratings against people's,
    and its calibration. Each such judge is saved as a folder ``judges/<key>``, a fine-tuned one merged and a probe
    without the model, with ``calibration.json`` from the dialogues that it rated. Finished runs are kept: the same
    command, after a kill or with more entries, runs what is missing.

    With bf16, a model of 135M parameters takes about a second of one core to rate a dialogue of 500 tokens, ten seconds
    with four examples, and two to three to learn from it once. The default, one such model on two subsets, is estimated
    at four hours on two cores. The layers below the last 10 run in the first epoch of fine-tuning only. A GGUF file is
    converted anew in each run; a folder is not. With more cores, raise ``test``, ``train`` and ``epochs``: with 160
    dialogues, a correlation is known to about 0.15 to each side.

    Models of different sizes differ in more than their size: if only one of them is tuned to follow instructions, their
    difference does not show the effect of either.

    Args:
        path: Folder with the files of USS, such as ``SGD.txt``.
        output_dir: Folder to write.
        models: Hub ids, folders or GGUF files, the smallest first; by default the demo's.
        subsets: Files of USS: "SGD", "MWOZ", "ReDial", "CCPE".
        entries: Names of what to run; all if empty.
        test: Held-out dialogues that are rated.
        train: Dialogues to learn from and to take examples from, of the others.
        epochs: Passes of fine-tuning over them.
        lr: Learning rate of fine-tuning.
        last_layers: Fine-tune so many decoder layers, the last ones; ``None`` for all, which takes longer.
        max_length: Longest prompt without examples in tokens.
        shots_length: Longest prompt with examples in tokens. Examples that do not fit are left out; the table says how
            many were shown. A dialogue takes about 450.
        example_length: Longest example in tokens; a longer one loses its oldest turns but the first.
        max_new_tokens: Longest text that a judge writes.
        precision: Precision of the Trainer. ``"auto"`` is that of the finished runs in the folder; in a new one it is
            ``"bf16-mixed"`` on a CPU that is timed to be at least 1.5 times as fast in bf16, and else ``"32-true"``.
            With bf16, judges that are not fine-tuned have bf16 weights.
        seed: Seed of the split and the runs.
        threads: Threads of a run.
        workers: Runs at a time. With 0, runs are made in this process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``dialogue.json`` holds.

    Raises:
        FileNotFoundError: If a subset has no file there.
        ValueError: If an entry is unknown, or there are fewer dialogues than asked for.
    """
    at_least("test", test, 16)
    chosen = select("entries", entries, ENTRIES)
    sources = tuple(models) or (packaged_model() or HUB_MODEL,)
    names = _names(sources)
    grid = Grid(output_dir, workers, keep_stale)
    precision = _precision(precision, grid.folder / "runs")
    data = {
        subset: DataCell(
            seed=seed, threads=threads, path=path, data_sha256=sha256(_file(path, subset)), subset=subset, test=test,
            train=train,
        )
        for subset in subsets
    }  # fmt: skip
    plain = {
        (subset, name): BaselineCell(**vars(cell), **fields)
        for subset, cell in data.items()
        for name, fields in BASELINES.items()
    }
    judges = {
        (subset, f"{model}: {name}"): JudgeCell(
            **vars(cell), model=source, max_length=shots_length if "examples" in fields else max_length,
            example_length=example_length if "examples" in fields else None, max_new_tokens=max_new_tokens,
            precision=precision,
            **_tuned(fields, epochs=epochs, lr=lr, last_layers=last_layers),
        )
        for subset, cell in data.items()
        for model, source in zip(names, sources, strict=True)
        for name, fields in chosen.items()
    }  # fmt: skip
    outcomes = {
        **grid.run(baseline, plain, "baselines", together=len(plain)),
        **grid.run(judged, judges, "judges"),
    }
    runs: dict[str, dict[str, Outcome]] = {subset: {} for subset in subsets}
    for (subset, name), outcome in outcomes.items():
        runs[subset][name] = {**outcome, "agreement": {k: list(v) for k, v in agreement(outcome).items()}}
    record: dict[str, Any] = {
        **{"library": version("lightning-unlearn"), "models": list(names), "subsets": list(subsets)},
        **{"test": test, "train": train, "epochs": epochs, "lr": lr, "last_layers": last_layers},
        **{
            "max_length": max_length,
            "shots_length": shots_length,
            "example_length": example_length,
            "max_new_tokens": max_new_tokens,
        },
        **{"precision": precision, "seed": seed},
        **{"runs": runs, "findings": findings(runs, names)},
    }
    record["judges"] = _calibrate(grid.folder, runs)
    record = write_record(grid.folder / "dialogue", record, dialogue_table)
    for model in names:
        _save_best(grid.folder, model, runs)
    return record


def dialogue_table(record: dict[str, Any]) -> str:
    """Markdown: agreement of each judge with people, and what the differences decide."""
    text = ""
    for subset, outcomes in record["runs"].items():
        rows = [[name, *_cells(outcome)] for name, outcome in outcomes.items()]
        rows.sort(key=lambda row: row[0].partition(":")[0])
        head = [f"USS-{subset}", "Spearman", "Pearson", "macro F1", "MAE", "parsed", "examples", "seconds"]
        text += markdown(head, rows) + "\n"
    decided = [
        [
            row["finding"], f"{row['first']} − {row['second']}",
            *(_interval(row["differences"].get(subset)) for subset in record["subsets"]),
            _interval(row["mean"]), row["decided"],
        ]
        for row in record["findings"]
    ]  # fmt: skip
    text += markdown(["finding", "difference of Spearman", *record["subsets"], "mean", "decided"], decided)
    if not record["judges"]:
        return text
    head = ["judge", "folder", "Spearman of its calibration", "trusted"]
    return f"{text}\n{markdown(head, [_judge_row(judge) for judge in record['judges']])}"


def _judge_row(judge: dict[str, Any]) -> list[str]:
    trusted = "yes" if judge["trusted"] else "no"
    return [f"USS-{judge['subset']}, {judge['name']}", judge["folder"], _interval(judge["spearman"]), trusted]


def _cells(outcome: Outcome) -> list[str]:
    found = outcome["agreement"]
    parts = [_interval(found["spearman"]), *(_number(found[name][0]) for name in ("pearson", "f1_macro", "mae"))]
    examples = f"{outcome['examples']:.1f}" if outcome.get("examples") else ""
    return [*parts, f"{100 * outcome['parse_rate']:.0f} %", examples, f"{sum(outcome['seconds'].values()):.0f}"]


def _interval(three: Sequence[float] | None) -> str:
    if three is None:
        return ""
    value, low, high = three
    return f"{_number(value)} [{_number(low)}, {_number(high)}]" if math.isfinite(value) else "none"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none"


def _names(sources: Sequence[str]) -> tuple[str, ...]:
    names = tuple(Path(source).name.removesuffix(".gguf") for source in sources)
    if len(set(names)) < len(names):
        raise ValueError(f"models must have different names, but got {list(names)}. Rename a folder.")
    return names


def _precision(precision: str, finished: Path) -> str:
    """The precision of the Trainer; ``"auto"`` is settled by the first run in a folder."""
    if precision != "auto":
        return precision
    cells = (json.loads(file.read_text(encoding="utf-8"))["cell"] for file in sorted(finished.glob("*.json")))
    begun = next((str(cell["precision"]) for cell in cells if "precision" in cell), None)
    return begun or {"bf16": "bf16-mixed", "32": "32-true"}[resolved("auto", torch.device("cpu"))]


def _file(path: str, subset: str) -> Path:
    found = [file for file in Path(path).glob("*.txt") if file.stem.lower().split("_")[-1] == subset.lower()]
    if len(found) != 1:
        raise FileNotFoundError(
            f"path must be a folder with one file {subset}.txt of USS, but {path} has {len(found)}."
        )
    return found[0]


def _tuned(fields: dict[str, Any], **setting: Any) -> dict[str, Any]:
    return {**fields, "lora": replace(fields["lora"], **setting)} if "lora" in fields else fields


def _calibrate(folder: Path, runs: dict[str, dict[str, Outcome]]) -> list[dict[str, Any]]:
    """Save the calibration of each saved judge beside it, fitted to the held-out dialogues that it rated."""
    judges = []
    for subset, outcomes in runs.items():
        for name, outcome in outcomes.items():
            if not outcome.get("files"):
                continue
            pairs = [(r.score, d.mean) for r, d in zip(*rated(outcome), strict=True) if math.isfinite(r.score)]
            if len(pairs) < 8:  # a calibration to fewer would be noise
                continue
            scores, human = map(list, zip(*pairs, strict=True))
            calibration = Calibration().fit(scores, human, outcome.get("floor"), judge=outcome.get("fingerprint"))
            (place,) = outcome["files"]
            calibration.save(folder / place / "calibration.json")
            told = {"trusted": calibration.trusted, "spearman": list(calibration.spearman)}
            judges.append({"subset": subset, "name": name, "folder": place, **told})
    return judges


def _save_best(folder: Path, model: str, runs: dict[str, dict[str, Outcome]]) -> None:
    """Draw the judge of a model, of those that learned from ratings if any, whose mean correlation is the highest."""
    common = [name for name in next(iter(runs.values())) if name.startswith(f"{model}: ")]
    tuned = [name for name in common if "fine-tuned" in name or "probe" in name] or common

    def mean(name: str) -> float:
        values = [outcomes[name]["agreement"]["spearman"][0] for outcomes in runs.values()]
        return sum(value if math.isfinite(value) else -1.0 for value in values)

    best = max(tuned, key=mean)
    try:
        figure = judge_figure(best, [outcomes[best] for outcomes in runs.values()])
    except (ImportError, ValueError) as error:
        warnings.warn(f"dialogue_{model}.svg is not drawn. {error}", stacklevel=2)
        return
    save_figure(folder / f"dialogue_{model}.svg", lambda: figure)
