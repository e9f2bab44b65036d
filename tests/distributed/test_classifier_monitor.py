"""Two processes that share the rows measure what one does: no row is counted twice, and their order is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


def close(one: Any, two: Any) -> None:
    assert two == {key: pytest.approx(value, abs=1e-4) for key, value in one.items()}


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for launcher in ("one", "torchrun"):
        command = [sys.executable]
        if launcher != "one":
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "tests.distributed.run_classifier_monitor", launcher, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-6000:]
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one-0", "torchrun-0", "torchrun-1"))
    assert len(one["history"]) == 2
    assert one["history"][0]["average_gap"] > 0
    for found in two:
        close(one["reference"], found["reference"])
        close(one["validate"], found["validate"])
        for expected, metrics in zip(one["history"], found["history"], strict=True):
            close(expected, metrics)
