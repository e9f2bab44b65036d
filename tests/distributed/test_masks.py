"""One process, DDP on two and FSDP2 on two make the identical mask, and freeze the identical bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_unlearn import LitCausalLM, load_mask
from tests.distributed.run_masks import MASKS

SCRIPT = Path(__file__).with_name("run_masks.py")
LAUNCHERS = ("one", "torchrun", "fsdp2")


@pytest.fixture(scope="module")
def runs(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    for launcher in LAUNCHERS:
        command = [sys.executable]
        if launcher != "one":
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [str(SCRIPT), launcher, str(tiny_lm), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("kind", MASKS)
def test_every_layout_makes_the_identical_mask(runs: Path, kind: str) -> None:
    one, *others = (load_mask(runs / f"{launcher}-{kind}.safetensors") for launcher in LAUNCHERS)
    for other in others:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    first, second = (torch.load(runs / f"torchrun-{kind}-rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], one[name]) and torch.equal(second[name], one[name]) for name in one)
    sharded = [torch.load(runs / f"fsdp2-{kind}-rank{rank}.pt") for rank in (0, 1)]
    for name, whole in one.items():
        assert sum(part[name].numel() for part in sharded) == whole.numel()
        assert torch.equal(torch.cat([part[name] for part in sharded]), whole)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", MASKS)
def test_exactly_so_many_weights(runs: Path, kind: str) -> None:
    mask = load_mask(runs / f"fsdp2-{kind}.safetensors")
    density = MASKS[kind]().density
    if MASKS[kind]().scope == "global":
        total = sum(m.numel() for m in mask.values())
        assert sum(int(m.sum()) for m in mask.values()) == int(density * total)
    elif kind == "WAGLE-released":
        assert all(int(m.sum()) == int(density * m.numel()) for m in mask.values())


@pytest.mark.distributed
@pytest.mark.parametrize("kind", MASKS)
def test_every_layout_trains_the_same_weights(runs: Path, kind: str) -> None:
    one, *others = (torch.load(runs / f"{launcher}-{kind}.pt") for launcher in LAUNCHERS)
    for other in others:
        for name in one:
            torch.testing.assert_close(other[name], one[name], atol=1e-6, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [kind for kind in MASKS if "LoRA" not in kind])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_frozen_weights_are_bit_identical(runs: Path, tiny_lm: Path, launcher: str, kind: str) -> None:
    mask = load_mask(runs / f"{launcher}-{kind}.safetensors")
    before = dict(LitCausalLM(str(tiny_lm)).named_parameters())
    moved = 0
    for end in ("", "-resumed"):
        for name, after in torch.load(runs / f"{launcher}-{kind}{end}.pt").items():
            start, live = before[name].detach(), mask.get(name, torch.zeros(after.shape, dtype=torch.bool))
            assert torch.equal(after[~live].view(torch.int32), start[~live].view(torch.int32))
            moved += int((after[live] != start[live]).sum())
    assert moved > 0


@pytest.mark.distributed
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_resumed_run_has_the_same_mask_and_weights(runs: Path, launcher: str, kind: str) -> None:
    first, second = (load_mask(runs / f"{launcher}-{kind}{end}.safetensors") for end in ("", "-resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole, resumed = (torch.load(runs / f"{launcher}-{kind}{end}.pt") for end in ("", "-resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
