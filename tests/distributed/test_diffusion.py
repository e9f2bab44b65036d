"""Two processes erase a concept as one does with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_unlearn import LitTextToImage
from tests.diffusion.tiny import write_pipeline
from tests.distributed.run_diffusion import METHODS

SCRIPT = Path(__file__).with_name("run_diffusion.py")
ROOT = SCRIPT.parents[2]
LAUNCHERS = ("one", "torchrun")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusion")
    write_pipeline(folder / "model")
    for launcher in LAUNCHERS:
        launch(launcher, str(SCRIPT), launcher, str(folder))
    return folder


def launch(launcher: str, *words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable]
    if launcher != "one":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.distributed
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(runs: Path, name: str) -> None:
    one, two = (torch.load(runs / f"{launcher}-{name}.pt") for launcher in LAUNCHERS)
    start = LitTextToImage(str(runs / "model")).state_dict()
    assert max((one[key] - value).abs().max() for key, value in start.items()) > 1e-3
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=0)


@pytest.mark.distributed
def test_two_processes_draw_what_one_does(runs: Path) -> None:
    from PIL import Image, ImageChops

    drawn = []
    for launcher in LAUNCHERS:
        words = ["predict", "--config", "examples/erase.yaml", f"--model.init_args.model={runs / 'model'}"]
        words += ["--model.init_args.steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
        words += [f"--trainer.default_root_dir={runs / launcher}", f"--trainer.devices={1 + LAUNCHERS.index(launcher)}"]
        program = [] if launcher == "one" else ["--module"]
        launch(launcher, *(program or ["-m"]), "lightning_unlearn", *words)
        rows = [json.loads(line) for line in (runs / launcher / "predictions.jsonl").read_text().splitlines()]
        drawn.append((rows, [Image.open(runs / launcher / row["file_name"]) for row in rows]))
    (rows, images), (others, other_images) = drawn
    assert rows == others
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]
    for image, other in zip(images, other_images, strict=True):
        assert max(high for _, high in ImageChops.difference(image, other).getextrema()) <= 1
