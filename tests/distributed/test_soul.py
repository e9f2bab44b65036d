"""The same curvature on every process and layout: one process, DDP x2, FSDP2 x2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.run_soul import METHODS

SCRIPT = Path(__file__).with_name("run_soul.py")
LAYOUTS = [(launcher, method) for launcher in ("torchrun", "fsdp2") for method in METHODS]
LAYOUTS.remove(("fsdp2", "hutchinson"))


@pytest.fixture(scope="module")
def runs(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soul")
    for launcher in ("one", "torchrun", "fsdp2"):
        command = [sys.executable]
        if launcher != "one":
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [str(SCRIPT), launcher, str(tiny_lm), str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(("launcher", "method"), LAYOUTS)
def test_two_processes_equal_one(runs: Path, launcher: str, method: str) -> None:
    one, two = (torch.load(runs / f"{kind}-{method}.pt") for kind in ("one", launcher))
    # Hutchinson's h may be negative, and a rounding error around 0 is then a step of full length or none.
    atol = 2e-5 if method == "hutchinson" else 1e-6
    torch.testing.assert_close(two["weights"], one["weights"], atol=atol, rtol=0)
    largest = one["hessian"].abs().max()
    torch.testing.assert_close(two["hessian"] / largest, one["hessian"] / largest, atol=1e-5, rtol=0)
    assert two["soul/clip_fraction"] == pytest.approx(one["soul/clip_fraction"], abs=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize(("launcher", "method"), [*LAYOUTS, *(("one", method) for method in METHODS)])
def test_a_resumed_run_equals_the_whole_one(runs: Path, launcher: str, method: str) -> None:
    whole, resumed = (torch.load(runs / f"{launcher}-{method}{end}.pt") for end in ("", "-resumed"))
    for name, value in resumed.items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.distributed
def test_every_run_moved_the_weights_and_was_not_all_clipped(runs: Path, tiny_lm: Path) -> None:
    from lightning_unlearn import LitCausalLM

    start = torch.cat([p.detach().flatten() for p in LitCausalLM(str(tiny_lm)).parameters()])
    for method in METHODS:
        found = torch.load(runs / f"one-{method}.pt")
        assert (found["weights"] - start).abs().max() > 1e-4
        assert found["soul/clip_fraction"] < 0.9


@pytest.mark.distributed
def test_every_process_makes_the_same_edit(runs: Path) -> None:
    one, two = (torch.load(runs / f"{kind}-edit.pt") for kind in ("one", "torchrun"))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=0)


@pytest.mark.distributed
def test_a_second_derivative_of_sharded_weights_is_refused(runs: Path) -> None:
    assert "estimator='gnb', or strategy='ddp'" in torch.load(runs / "refused.pt")
