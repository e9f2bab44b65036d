"""Two processes unlearn a classifier as one does with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.run_classification import METHODS

SCRIPT = Path(__file__).with_name("run_classification.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    for launcher in ("one", "torchrun"):
        command = [sys.executable]
        if launcher != "one":
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [str(SCRIPT), launcher, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(runs: Path, name: str) -> None:
    one, two = (torch.load(runs / f"{launcher}-{name}.pt") for launcher in ("one", "torchrun"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-5, rtol=0)
