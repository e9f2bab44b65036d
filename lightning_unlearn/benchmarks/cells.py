"""A grid of runs, each in a process of its own and finished once for all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

__all__ = ["cell_key", "run_cells", "write_atomically"]

Cell = dict[str, Any]


def cell_key(cell: Cell) -> str:
    """A hash of everything that a cell's result depends on."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside its place and move it there: what is there is whole, whenever the process ends."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.rename(path)


def run_cells(
    cells: Iterable[Cell], work: Callable[[Cell], Cell], folder: Path, workers: int = 1, description: str = "cells"
) -> list[Cell]:
    """Run the cells that have no result yet, and return the results of all.

    A cell is a JSON object; its result is kept in ``<folder>/<hash of the cell>.json`` with the cell. Run again after a
    kill, only what is missing is done.

    Args:
        cells: Each one is what ``work`` is given.
        work: A function of a module, called in a fresh process; returns a JSON object.
        folder: Where results are kept.
        workers: Processes at a time.
        description: Name on the progress bar.

    Returns:
        The results, in the order of ``cells``.
    """
    cells = list(cells)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{cell_key(cell)}.json" for cell in cells]
    todo = {path: cell for path, cell in zip(paths, cells, strict=True) if not path.exists()}
    # Fresh processes: the peak memory of a run is its own, and no run inherits another's threads.
    with (
        tqdm(total=len(cells), initial=len(cells) - len(todo), desc=description, unit="run") as progress,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        running = {pool.submit(work, cell): path for path, cell in todo.items()}
        try:
            for done in as_completed(running):
                path = running[done]
                record = {"cell": todo[path], "result": done.result()}
                write_atomically(path, json.dumps(record, indent=2) + "\n")
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [json.loads(path.read_text(encoding="utf-8"))["result"] for path in paths]
