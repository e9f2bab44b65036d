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

from tests.distributed.cases import CASES, LAYOUTS, ROOT


def launch(models: Path, results: Path, words: Iterable[str], processes: int = 2) -> None:
    """Run cases, each given as ``layout:case``, in several processes with torchrun, or without it where it is one."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "tests.distributed.run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, models, results, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-6000:]


class Runs:
    """Results of cases by layout: those of one process are made here, all others in one launch of two.

    Args:
        cases: Names of the cases.
        models: Folder of what they start from.
        results: Folder for what they leave.
    """

    def __init__(self, cases: Collection[str], models: Path, results: Path) -> None:
        self.models, self.results = models, results
        self.alone: dict[str, Any] = {}
        words = [f"{layout}:{case}" for case in cases for layout in CASES[case].layouts]
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


def chosen_cases(request: pytest.FixtureRequest) -> list[str]:
    """The cases of the tests of a module that are going to run."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return sorted({call.params["case"] for call in calls if call is not None and "case" in call.params})


def with_layouts(cases: Collection[str], *more: str) -> pytest.MarkDecorator:
    """Parametrize a test with cases and each of their layouts."""
    return pytest.mark.parametrize(
        ("case", "layout"), [(case, layout) for case in cases for layout in (*more, *CASES[case].layouts)]
    )
