"""Finished cells are never run again, however a comparison ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.benchmarks.cells import cell_key, run_cells


def square(cell: dict[str, Any]) -> dict[str, Any]:
    """Writes down that it ran, and dies where it is told to."""
    with Path(cell["log"]).open("a") as log:
        log.write(f"{cell['x']}\n")
    if cell["x"] == cell.get("fatal") and not Path(cell["log"]).with_name("mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": cell["x"] ** 2, "process": os.getpid()}


def test_results_come_in_order_each_from_a_process_of_its_own(tmp_path: Path) -> None:
    cells = [{"x": x, "log": str(tmp_path / "log")} for x in (3, 1, 2)]
    results = run_cells(cells, square, tmp_path / "runs", workers=2)
    assert [result["y"] for result in results] == [9, 1, 4]
    assert len({result["process"] for result in results} | {os.getpid()}) == 4


def test_a_run_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    cells = [{"x": x, "log": str(tmp_path / "log"), "fatal": 2} for x in (1, 2, 3)]
    with pytest.raises(Exception, match="terminated abruptly"):
        run_cells(cells, square, tmp_path / "runs")
    assert (tmp_path / "log").read_text().split() == ["1", "2"]

    (tmp_path / "mended").touch()
    (tmp_path / "log").unlink()
    assert [result["y"] for result in run_cells(cells, square, tmp_path / "runs")] == [1, 4, 9]
    assert (tmp_path / "log").read_text().split() == ["2", "3"]

    more = [*cells, {"x": 5, "log": str(tmp_path / "log")}]
    assert [result["y"] for result in run_cells(more, square, tmp_path / "runs")] == [1, 4, 9, 25]
    assert (tmp_path / "log").read_text().split() == ["2", "3", "5"]


def test_a_cell_is_known_by_all_it_says(tmp_path: Path) -> None:
    cell = {"lr": 1e-5, "callbacks": [{"class_path": "a"}]}
    assert cell_key(cell) == cell_key(dict(reversed(cell.items())))
    assert len({cell_key(c) for c in (cell, cell | {"lr": 2e-5}, cell | {"callbacks": []}, cell | {"seed": 0})}) == 4
    run_cells([{"x": 2, "log": str(tmp_path / "log")}], square, tmp_path)
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert record["cell"]["x"] == 2
    assert record["result"]["y"] == 4
