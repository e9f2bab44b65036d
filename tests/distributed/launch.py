"""Launches cases of the table, as few processes as can be, and reads their results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.cases import CASES
from tests.distributed.layouts import LAYOUTS, ROOT


def launch(models: Path, results: Path, words: Iterable[str], processes: int = 2) -> None:
    """Run cases, each given as ``layout:case``, in several processes with torchrun, or without it where it is one."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "tests.distributed.run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, models, results, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=2400
    )
    assert done.returncode == 0, done.stderr[-6000:]


class Runs:
    """Results of cases by layout: those of one process are made here, all others in one launch of two.

    Args:
        words: Each a layout and a case of the tests that are going to run, see `chosen`.
        models: Folder of what they start from.
        results: Folder for what they leave.
    """

    def __init__(self, words: Collection[str], models: Path, results: Path) -> None:
        self.models, self.results = models, results
        self.alone: dict[str, Any] = {}
        if words:
            launch(models, results, words)

    def one(self, case: str) -> Any:
        """What a process alone finds."""
        if case not in self.alone:
            self.alone[case] = CASES[case]("one", self.models, self.results / f"one-{case}")
        return self.alone[case]

    def each(self, case: str, layout: str) -> list[Any]:
        """What each process of a layout finds."""
        if layout == "one":
            return [self.one(case)]
        return load(self.results, f"{layout}-{case}", LAYOUTS[layout].processes)


def load(results: Path, name: str, processes: int) -> list[Any]:
    """What each process has saved."""
    return [torch.load(results / f"{name}.{rank}.pt", weights_only=False) for rank in range(processes)]


def chosen(request: pytest.FixtureRequest) -> list[str]:
    """What the tests of a module that are going to run need of several processes: ``layout:case`` each.

    A test with a ``case`` and no ``layout`` needs all of them; one that needs what a process alone finds calls it else.
    """
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    needed = [call.params for call in calls if call is not None and "case" in call.params]
    pairs = {(p["case"], layout) for p in needed for layout in ([p["layout"]] if "layout" in p else LAYOUTS)}
    return sorted(f"{layout}:{case}" for case, layout in pairs if layout in CASES[case].layouts)


def with_layouts(cases: Collection[str], *more: str, slow: Collection[tuple[str, str]] = ()) -> pytest.MarkDecorator:
    """Parametrize a test with cases and each of their layouts, some of which are left to the slow tests."""
    pairs = [(case, layout) for case in cases for layout in (*more, *CASES[case].layouts)]
    marked = [pytest.param(*pair, marks=[pytest.mark.slow] if pair in slow else []) for pair in pairs]
    return pytest.mark.parametrize(("case", "layout"), marked)
