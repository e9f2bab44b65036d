"""Comparison of SMUG with other reconstruction methods on the brain template: quality, robustness and cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.benchmarks.grid import Grid, Outcome, select, separate_seeds
from lightning_unlearn.benchmarks.reconstruction_report import write_reconstruction_report
from lightning_unlearn.benchmarks.reconstruction_results import CLEAN_LOSS
from lightning_unlearn.benchmarks.reconstruction_runs import (
    DenoiserCell,
    MeasureCell,
    NetworkCell,
    ZeroFilledCell,
    measure,
    measure_zero_filled,
    train_denoiser,
    train_network,
)
from lightning_unlearn.benchmarks.reconstruction_settings import (
    METHODS,
    QUICK_CONDITIONS,
    QUICK_RECIPE,
    Conditions,
    Recipe,
    Setting,
)
from lightning_unlearn.core.checks import between
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.lightning import resolve
from lightning_unlearn.report.render_markdown import render_markdown

__all__ = ["bench_reconstruction", "mean_score", "robust_score"]

DIVERGED = -1000.0
PLAIN = "vanilla"

TUNING_LOSS = CLEAN_LOSS / 2
"""What a setting may lose on clean validation images, in dB: half of what the claim allows, since tuning is shorter."""


def bench_reconstruction(
    output_dir: str = "runs/reconstruction",
    methods: Sequence[str] = (),
    tuning_seeds: Sequence[int] = (100,),
    seeds: Sequence[int] = (0, 1, 2),
    settings: int | None = None,
    recipe: Recipe | None = None,
    conditions: Conditions | None = None,
    quick: bool = False,
    threads: int = 1,
    workers: int = 2,
    wandb_project: str | None = None,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Compare vanilla MoDL, RS-E2E, SMUG, weighted SMUG and adversarial training on scans of the brain template.

    For each seed one denoiser is pre-trained; every method starts from it and makes the same number of updates. All
    methods have the same number of settings, and run with each of them on ``tuning_seeds``. The best one on validation
    images runs on ``seeds``: that with the highest PSNR under attack of those that lose at most 0.5 dB against vanilla
    on clean ones; for vanilla itself, that with the highest mean of clean and attacked PSNR. These networks are
    measured on slices that were not used for choosing settings: clean, under an adaptive attack, with noise, at other
    accelerations and with other numbers of steps. Claims are decided by the intervals of paired differences.

    Writes ``reconstruction.json``, ``reconstruction.csv`` with a row an image, ``report.html``, ``report.md``,
    ``report.json``, and with matplotlib ``reconstruction.svg``. Finished runs are kept in ``runs/``: after a kill, or
    with more methods, the same command runs only what is missing, and what ran on code that has changed. Started
    several times on one folder, also on several machines, it shares the runs.

    Args:
        output_dir: Folder to write.
        methods: Names of the methods to run; all if empty.
        tuning_seeds: Seeds on which settings are chosen.
        seeds: Seeds that are reported, none of which is tuned on.
        settings: Number of settings to try per method, from its list of twelve; by default all.
        recipe: The data, the network and the length of the training.
        conditions: What is measured.
        quick: Try the command out in minutes: with a recipe and conditions under which networks are hardly trained, and
            with 3 settings by default.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are faster than one of two. With 0, runs are made in this
            process.
        wandb_project: Project of Weights & Biases to which numbers, tables and figures are logged.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``reconstruction.json`` holds.

    Raises:
        ValueError: If a method is unknown, a number is out of range, there is no seed, a reported seed is tuned on, or
            ``quick`` is given with a recipe or conditions.
    """
    chosen = select("methods", methods, METHODS)
    separate_seeds(tuning_seeds, seeds)
    if quick and (recipe or conditions):
        raise ValueError("quick=True has a recipe and conditions of its own. Give either it or them.")
    recipe = recipe or (QUICK_RECIPE if quick else Recipe())
    conditions = conditions or (QUICK_CONDITIONS if quick else Conditions())
    tried = between("settings", (3 if quick else 12) if settings is None else settings, 1, 12)
    config = {"recipe": asdict(recipe), "conditions": asdict(conditions), "seeds": list(seeds)}
    logger = None if wandb_project is None else _logger(wandb_project, config)  # before hours of work
    grid, shared = Grid(output_dir, workers, keep_stale), _shared(recipe, threads)
    starts = {seed: DenoiserCell(**shared, seed=seed) for seed in sorted({*tuning_seeds, *seeds})}
    denoisers = grid.run(train_denoiser, starts, "pre-training")

    def cell(name: str, setting: Setting, seed: int) -> NetworkCell:
        steps = recipe.tuning_steps if seed in tuning_seeds else recipe.steps
        (denoiser,) = denoisers[seed]["files"]
        options: Any = {"mode": chosen[name].mode, "setting": setting, "steps": steps, "denoiser": denoiser}
        return NetworkCell(**shared, conditions=conditions.of_validation(), seed=seed, **options)

    candidates = {name: spread_over(method.settings, tried) for name, method in chosen.items()}
    tuned = _tuned(grid, candidates, cell, tuning_seeds, seeds)
    tests = {
        (name, seed): MeasureCell(
            **shared,
            conditions=conditions,
            mode=chosen[name].mode,
            setting=Setting(**found["setting"]),
            weights=run["files"][0],
            seed=seed,
        )
        for name, found in tuned.items()
        for seed, run in zip(seeds, found["runs"], strict=True)
        if "error" not in run
    }
    measured = grid.run(measure, tests, "test")
    zero = grid.run(measure_zero_filled, {0: ZeroFilledCell(**shared, conditions=conditions, seed=0)}, "zero-filled")
    for name, found in tuned.items():
        found["mode"] = chosen[name].mode
        found["runs"] = [
            _joined(run, measured.get((name, seed))) for seed, run in zip(seeds, found["runs"], strict=True)
        ]
    record = {
        **{**config, "tuning_seeds": list(tuning_seeds), "settings": tried, "threads": threads},
        **{"library": version("lightning-unlearn"), "zero_filled": zero[0], "methods": tuned},
    }
    return _written(record, grid.folder, logger)


def _tuned(
    grid: Grid,
    candidates: Mapping[str, Sequence[Setting]],
    cell: Callable[[str, Setting, int], NetworkCell],
    tuning_seeds: Sequence[int],
    seeds: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Each method with the best of its settings; that of vanilla comes first, since the others are held to it."""
    plain, others = ({n: s for n, s in candidates.items() if (n == PLAIN) is own} for own in (True, False))
    tuned = grid.tune(train_network, plain, cell, mean_score, tuning_seeds, seeds)
    rule: Callable[[Outcome], float] = mean_score
    if plain:
        best = max(tuned[PLAIN]["tuning"], key=lambda tried: tried["score"])
        sound = [found["clean"] for run in best["runs"] if (found := _validation(run))]
        rule = partial(robust_score, clean=float(np.mean(sound)) if sound else -math.inf)
    tuned |= grid.tune(train_network, others, cell, rule, tuning_seeds, seeds)
    return {name: tuned[name] for name in candidates}


def _shared(recipe: Recipe, threads: int) -> dict[str, Any]:
    """What all cells have in common."""
    return {"recipe": recipe, "threads": threads}


def _joined(trained: Outcome, tested: Outcome | None) -> Outcome:
    """The results of a training and of its test, with the files of both."""
    return trained if tested is None else {**trained, **tested, "files": [*trained["files"], *tested["files"]]}


def mean_score(outcome: Outcome) -> float:
    """The mean PSNR of clean and attacked validation images; a network that diverged is worse than any."""
    return float(np.mean([*_validation(outcome).values()])) if _validation(outcome) else DIVERGED


def robust_score(outcome: Outcome, clean: float) -> float:
    """The PSNR under attack of a network that loses little on clean validation images.

    Args:
        outcome: A training.
        clean: PSNR of vanilla on them.

    Returns:
        The PSNR under attack; of a network that loses more than ``TUNING_LOSS``, the loss as a negative number, so that
        it comes after all others.
    """
    found = _validation(outcome)
    if not found:
        return DIVERGED
    own = found.pop("clean")
    return max(found.values()) if own >= clean - TUNING_LOSS else own - clean


def _validation(outcome: Outcome) -> dict[str, float]:
    """Mean PSNR under each condition; nothing of a network that diverged."""
    if "error" in outcome:
        return {}
    found = {name: float(np.mean(quality["psnr"])) for name, quality in outcome["validation"].items()}
    return found if all(map(math.isfinite, found.values())) else {}


def spread_over(settings: Sequence[Setting], count: int) -> list[Setting]:
    """So many of some settings, evenly from first to last; of one, that in the middle."""
    if count == 1:
        return [settings[len(settings) // 2]]
    return [settings[round(i * (len(settings) - 1) / (count - 1))] for i in range(count)]


def _logger(project: str, settings: dict[str, Any]) -> Any:
    try:
        return resolve("loggers.WandbLogger")(project=project, config=settings)
    except ModuleNotFoundError:
        raise ImportError('wandb_project needs wandb: pip install "lightning-unlearn[wandb]"') from None


def _written(record: dict[str, Any], folder: Path, logger: Any) -> dict[str, Any]:
    """Write the record, its rows and its report."""
    text = json.dumps(record, indent=2) + "\n"
    record = json.loads(text)
    write_text(folder / "reconstruction.json", text)
    report = write_reconstruction_report(record, folder, logger)
    if logger is not None:
        logger.experiment.finish()
    print(render_markdown(replace(report, sections=report.sections[:2], provenance={}, limits=[], terms={})))
    print(f"Open {folder / 'report.html'}.")
    return record
