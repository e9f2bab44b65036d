"""Demo of robust reconstruction: two networks learn to reconstruct MRI scans and are attacked, on a CPU in minutes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.benchmarks.paired import PairedDifference
from lightning_unlearn.benchmarks.reconstruction_images import ERROR_NOTE, reconstruction_images
from lightning_unlearn.benchmarks.reconstruction_report import LIMITS, TERMS
from lightning_unlearn.benchmarks.reconstruction_results import ReconstructionResults
from lightning_unlearn.benchmarks.reconstruction_runs import fit_denoiser, fit_network, measured, zero_filled
from lightning_unlearn.benchmarks.reconstruction_settings import METHODS, Conditions, Recipe, Setting
from lightning_unlearn.benchmarks.reconstruction_tables import (
    cost_table,
    curves,
    difference_table,
    quality_tables,
    with_interval,
)
from lightning_unlearn.benchmarks.runs import quiet_libraries
from lightning_unlearn.benchmarks.table import markdown
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.files import sha256
from lightning_unlearn.reconstruction.sweep_results import ShownImage
from lightning_unlearn.report.model import Headline, Tone, UnlearningReport
from lightning_unlearn.report.sections import Images, Section
from lightning_unlearn.report.write import write_report

__all__ = ["demo_mri"]

_CHOSEN = {"vanilla": Setting(), "SMUG": Setting(sigma=0.05, reconstruction_weight=10)}
"""That of SMUG is the better one of two that a pilot run tried, on other slices: nothing was tuned here."""

_CONDITIONS = Conditions(
    attack_steps=10, restarts=1, noise=(0.05,), rates=(2.0, 4.0, 8.0), unrolled_steps=(2, 4, 8), rows=6
)


def demo_mri(output_dir: str = "runs/demo-mri", steps: int = 600, seed: int = 0) -> UnlearningReport:
    """Train MoDL plain and with SMUG on simulated scans of a brain template, attack both, and write a page of images.

    Both start from one pre-trained denoiser and make as many updates. Writes ``report.json``, ``report.md``,
    ``report.html``, and ``vanilla.ckpt`` and ``SMUG.ckpt``, which ``LitReconstruction.load_from_checkpoint`` opens.

    Args:
        output_dir: Folder to write.
        steps: Updates of each network.
        seed: Seed of the run.

    Returns:
        The report.

    Raises:
        ValueError: If there are fewer than 4 updates.
    """
    at_least("steps", steps, 4)
    quiet_libraries()
    folder, start = Path(output_dir), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(samples=_CONDITIONS.samples, pretraining_steps=max(4, steps // 3), steps=steps)
    with tempfile.TemporaryDirectory() as scratch:
        print("Pre-training the denoiser ...", flush=True)
        denoiser = str(Path(scratch, "denoiser.pt"))
        torch.save(fit_denoiser(recipe, seed).denoiser.state_dict(), denoiser)
        runs, shown = {}, {}
        for name in _CHOSEN:
            runs[name], shown[name] = _train_and_attack(name, recipe, seed, denoiser, folder, Path(scratch))
        zero = zero_filled(recipe, _CONDITIONS, Path(scratch, "zero-filled"))
    record = {
        **{"recipe": asdict(recipe), "conditions": asdict(_CONDITIONS), "seeds": [seed], "zero_filled": zero},
        "methods": {name: {"mode": METHODS[name].mode, "runs": [run]} for name, run in runs.items()},
    }
    results = ReconstructionResults(json.loads(json.dumps(record)))
    files = [folder / f"{name}.ckpt" for name in _CHOSEN]
    provenance = {
        **{"seed": seed, "recipe": asdict(recipe), "conditions": asdict(_CONDITIONS)},
        **{"settings": {name: asdict(setting) for name, setting in _CHOSEN.items()}},
        **{"model_sha256": sha256(*files), "seconds": round(time.perf_counter() - start)},
    }
    report = _report(results, shown, provenance)
    write_report(report, folder, show_text=True)
    _print(results, folder)
    return report


def _train_and_attack(
    name: str, recipe: Recipe, seed: int, denoiser: str, folder: Path, scratch: Path
) -> tuple[dict[str, Any], list[ShownImage]]:
    """Train a network, keep it, and measure it."""
    print(f"Training {name} ...", flush=True)
    start = time.process_time()
    module = fit_network(recipe, METHODS[name].mode, _CHOSEN[name], recipe.steps, seed, denoiser)
    seconds = time.process_time() - start
    module.trainer.save_checkpoint(folder / f"{name}.ckpt")
    print(f"Attacking {name} ...", flush=True)
    found, shown = measured(module, recipe, "test", _CONDITIONS.rows, _CONDITIONS, scratch / name)
    return {"test": found, "seconds": seconds}, shown


def _report(
    results: ReconstructionResults, shown: dict[str, list[ShownImage]], provenance: dict[str, Any]
) -> UnlearningReport:
    strongest = results.eps[-1]
    clean, attacked = (results.difference("SMUG", "vanilla", name) for name in ("clean", strongest))
    return UnlearningReport(
        title="Two networks reconstruct MRI scans, and are attacked",
        headline=_headline(clean, attacked, strongest),
        subject={
            "data": "ICBM 152 brain template, simulated scans",
            "networks": "MoDL, plain and trained with SMUG",
            "test images": results.record["conditions"]["rows"],
            "updates of each": results.record["recipe"]["steps"],
        },
        sections=[
            Section("differences", "SMUG against vanilla", [difference_table(results, "SMUG", "vanilla")]),
            Section("images", "Images", _images(shown, ("clean", strongest))),
            Section("curves", "From weak to strong", curves(results)),
            Section("quality", "Quality under all conditions", quality_tables(results)),
            Section("cost", "Cost", [cost_table(results)]),
        ],
        provenance=provenance,
        limits=["One seed and few images: an illustration. lightning-unlearn bench-reconstruction decides.", *LIMITS],
        terms=TERMS,
    )


def _headline(clean: PairedDifference, attacked: PairedDifference, strongest: str) -> Headline:
    """What the run has shown, whatever that is."""
    words: dict[str, tuple[str, Tone]] = {
        "holds": ("SMUG is better under attack", "good"),
        "does not hold": ("SMUG is worse under attack", "bad"),
        "undecided": ("no difference under attack", "neutral"),
    }
    summary = (
        f"SMUG against vanilla MoDL, {strongest}: {with_interval(attacked)} dB; on clean measurements: "
        f"{with_interval(clean)} dB. Intervals are over the images."
    )
    return Headline(*words[attacked.above()], summary)


def _images(shown: dict[str, list[ShownImage]], conditions: Sequence[str]) -> list[Images]:
    """The first test image, by both networks, clean and under the strongest attack on each."""
    found = {name: {image.condition.name: image for image in images} for name, images in shown.items()}
    grid = {
        condition: {name: (images[condition].image, images[condition].error) for name, images in found.items()}
        for condition in conditions
    }
    first = next(iter(found.values()))["clean"]
    return [reconstruction_images("A test image", grid, first.target, ERROR_NOTE)]


def _print(results: ReconstructionResults, folder: Path) -> None:
    table = difference_table(results, "SMUG", "vanilla")
    print("\n" + markdown(table.columns, [[str(cell) for cell in row] for row in table.rows]))
    print(
        f"Open {folder / 'report.html'}. The networks are in {', '.join(f'{folder / name}.ckpt' for name in _CHOSEN)}."
    )
