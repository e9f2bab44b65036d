"""Two processes train what one process trains on the joined batch: DDP, FSDP2, and Lightning's own launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.run import METHODS

SCRIPT = Path(__file__).with_name("run.py")


def launch(launcher: str, model: Path, folder: Path) -> None:
    command = [sys.executable]
    if launcher in ("torchrun", "fsdp2"):
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(SCRIPT), launcher, str(model), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def reinforce(model: Path, path: Path) -> None:
    """Another model of the same shape, for WhosHarryPotter."""
    from lightning_unlearn import LitCausalLM

    noise = torch.Generator().manual_seed(0)
    state = LitCausalLM(str(model)).state_dict()
    torch.save({"state_dict": {k: v + 0.1 * torch.randn(v.shape, generator=noise) for k, v in state.items()}}, path)


@pytest.fixture(scope="module")
def runs(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    reinforce(tiny_lm, folder / "reinforced.ckpt")
    for launcher in ("one", "torchrun", "fsdp2", "ddp", "ddp_spawn"):
        launch(launcher, tiny_lm, folder)
    return folder


def same(folder: Path, a: str, b: str) -> None:
    first, second = torch.load(folder / f"{a}.pt"), torch.load(folder / f"{b}.pt")
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
def test_ddp_on_two_processes_equals_one(runs: Path, method: str) -> None:
    same(runs, f"torchrun-{method}", f"one-{method}")


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
def test_fsdp2_on_two_processes_equals_ddp(runs: Path, method: str) -> None:
    same(runs, f"fsdp2-{method}", f"torchrun-{method}")


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("launcher", ["one", "torchrun", "fsdp2"])
def test_a_resumed_run_equals_the_whole_one(runs: Path, launcher: str, method: str) -> None:
    whole, resumed = (torch.load(runs / f"{launcher}-{method}{end}.pt") for end in ("", "-resumed"))
    assert torch.equal(whole, resumed)


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["SimNPO", "NPO-LoRA"])
def test_a_sharded_model_exports_the_same_weights(runs: Path, method: str) -> None:
    one, sharded = (load_file(runs / f"{kind}-{method}-export" / "model.safetensors") for kind in ("one", "fsdp2"))
    assert one.keys() == sharded.keys()
    for key, value in one.items():
        torch.testing.assert_close(sharded[key], value, atol=1e-6, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["ddp", "ddp_spawn"])
def test_lightnings_own_launchers(runs: Path, launcher: str) -> None:
    same(runs, f"{launcher}-NPO-cache", "one-NPO-cache")


@pytest.mark.distributed
def test_every_run_moved_the_weights(runs: Path, tiny_lm: Path) -> None:
    from lightning_unlearn import LitCausalLM

    start = torch.cat([p.detach().flatten() for p in LitCausalLM(str(tiny_lm)).parameters()])
    for method in METHODS:
        if "LoRA" not in method:  # only its adapters move
            assert (torch.load(runs / f"one-{method}.pt") - start).abs().max() > 1e-4
