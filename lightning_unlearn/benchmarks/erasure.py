"""Comparison of erasure methods on the miniature: what is gone, what is kept, what an attack brings back, the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.benchmarks.erasers import ERASERS, Eraser
from lightning_unlearn.benchmarks.grid import Cell, Grid, Outcome, select
from lightning_unlearn.benchmarks.miniature import ATTACK, DRAW, SEARCH, attacked, drawn, erase
from lightning_unlearn.benchmarks.runs import quiet_libraries
from lightning_unlearn.benchmarks.table import markdown, rate, spread, write_record
from lightning_unlearn.core.files import sha256
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["bench_erasure"]


@dataclass(frozen=True, kw_only=True)
class ErasureCell(Cell):
    """A method, a concept, and how much is measured; the hash is of the pipeline and its judges."""

    eraser: Eraser
    target: str
    images: int
    prompts: int
    pipeline_sha256: str


def bench_erasure(
    output_dir: str = "runs/erasure",
    methods: Sequence[str] = (),
    targets: Sequence[str] = ("negative", "mosaic", "ring", "box"),
    seeds: Sequence[int] = (0, 1, 2),
    images: int = 6,
    prompts: int = 10,
    threads: int = 1,
    workers: int = 2,
    keep_stale: bool = False,
) -> dict[str, Any]:
    """Erase styles and objects from the miniature pipeline with each method, and attack what is left.

    Each run is measured on images of held-out captions: UA, the share of images of the erased concept that do not show
    it; IRA and CRA, the accuracy on other concepts of its kind and on those of the other kind; and the FID of the
    images to keep to those of the original pipeline. Then the same prompts are attacked with UnlearnDiffAtk and with
    random tokens.

    Writes ``erasure.json`` and ``erasure.md``. Finished runs are kept in ``runs/``: after a kill, or with more methods,
    the same command runs only what is missing, and what ran on code that has changed.

    Args:
        output_dir: Folder to write.
        methods: Names of the methods to run; all if empty.
        targets: Styles and objects to erase, one per run; all if empty.
        seeds: Seeds of the runs.
        images: Images of each pair of a style and an object.
        prompts: Prompts that are attacked in a run.
        threads: Threads of a run.
        workers: Runs at a time; two runs of one thread are faster than one of two. With 0, runs are made in this
            process.
        keep_stale: Keep the results of runs whose source files have changed since.

    Returns:
        What ``erasure.json`` holds.

    Raises:
        ValueError: If a method or target is unknown.
    """
    chosen = select("methods", methods, {eraser.name: eraser for eraser in ERASERS})
    erased = list(select("targets", targets, {name: name for name in (*STYLES, *OBJECTS)}))
    grid = Grid(output_dir, workers, keep_stale)
    pipeline = sha256(*sorted(file for file in miniature_pipeline().rglob("*") if file.is_file()))
    run: Any = {"threads": threads, "images": images, "prompts": prompts, "pipeline_sha256": pipeline}
    cells = {
        (name, target, seed): ErasureCell(**run, eraser=eraser, target=target, seed=seed)
        for name, eraser in chosen.items()
        for target in erased
        for seed in seeds
    }
    runs = grid.run(unlearn, cells, "erasure")
    record = {
        **{"draw": DRAW, "attack": ATTACK | SEARCH, "library": version("lightning-unlearn")},
        **{**run, "seeds": list(seeds), "targets": erased},
        "methods": {n: {t: [runs[n, t, seed] for seed in seeds] for t in erased} for n in chosen},
    }
    return write_record(grid.folder / "erasure", record, table)


def table(record: Mapping[str, Any]) -> str:
    """Markdown: mean and standard deviation over targets and seeds, rates of attacks with 95 % Wilson intervals."""
    rows = []
    for name, targets in record["methods"].items():
        runs = [run for outcomes in targets.values() for run in outcomes]
        shares = [spread([100 * run[key] for run in runs]) for key in ("UA", "IRA", "CRA")]
        attacks = [
            rate(*np.sum([run[key] for run in runs], axis=0).tolist()) for key in ("pre_asr", "asr", "random_asr")
        ]
        costs = [f"{np.mean([run[key] for run in runs]):.0f}" for key in ("seconds", "unet_rows")]
        rows.append([name, *shares, *attacks, spread([run["FID"] for run in runs]), *costs])
    return markdown(["", "UA", "IRA", "CRA", "pre-ASR", "ASR", "random tokens", "FID", "CPU s", "UNet rows"], rows)


def unlearn(cell: ErasureCell, folder: Path) -> Outcome:
    """Erase, measure, attack."""
    quiet_libraries("transformers", "diffusers")
    base = LitTextToImage(str(miniature_pipeline())).eval()
    module, cost = base, {"seconds": 0.0, "unet_rows": 0, "steps": 0}
    if cell.eraser.callbacks:
        module, cost = erase(cell.eraser, cell.target, cell.seed)
    images = drawn(module, base, cell.target, cell.seed, cell.images)
    return {**images, **attacked(module, base, cell.target, cell.seed, cell.prompts), **cost}
