"""A run that is killed in mid-epoch goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_unlearn import NPO, LanguageDataModule, LitCausalLM
from tests.helpers import Recorder, same, trainer

ROWS = [{"question": f"Where is number {i}?", "answer": f"In street {i % 5}."} for i in range(20)]
# Epochs have 7 steps and checkpoints come every 3: the run is killed in its second epoch, two steps after the last.
# Imports take longer than the runs, so these are children of one process, which itself begins nothing.
KILLED = """
import os, sys
from tests.core.test_kill import run

for workers in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        run(sys.argv[1], f"{sys.argv[2]}/{workers}", workers, kill_at=11)
        os._exit(0)
    print("ended by", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
WORKERS = [0, 1]


def run(model: str, folder: str, workers: int, kill_at: int = -1, **options: Any) -> LitCausalLM:
    """Train, or be killed after a step."""

    def kill(trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = LitCausalLM(model, lr=1e-2)
    data = LanguageDataModule(ROWS[:14], ROWS[14:], batch_size=2, num_workers=workers)
    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=3, save_top_k=0)
    settings = {"max_epochs": 3, "enable_checkpointing": True, "limit_val_batches": 0, "gradient_clip_val": 1.0}
    fit = trainer(NPO(), checkpoints, Recorder(on_train_batch_end=kill), **settings)
    fit.fit(module, data, **options)
    return module


@pytest.fixture(scope="module")
def killed(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of a run for each number of workers."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(tiny_lm), str(folder), *map(str, WORKERS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True)
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended by")]
    assert ends == [f"ended by {-signal.SIGKILL}"] * len(WORKERS)
    return folder


@pytest.mark.parametrize("workers", WORKERS)
def test_kill_and_resume(killed: Path, tiny_lm: Path, tmp_path: Path, workers: int) -> None:
    last = killed / str(workers) / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 9
    whole = run(str(tiny_lm), str(tmp_path / "whole"), workers)
    resumed = run(str(tiny_lm), str(last.parent), workers, ckpt_path=last, weights_only=True)
    assert same(resumed, whole)
