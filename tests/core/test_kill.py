"""A run that is killed in mid-epoch goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, signal, sys
import lightning as L, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_unlearn import NPO, LanguageDataModule, LitCausalLM

torch.set_num_threads(1)
model, folder, kill_at, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Kill(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

rows = [{"question": f"Where is number {i}?", "answer": f"In street {i % 5}."} for i in range(20)]
L.seed_everything(0)
module = LitCausalLM(model, lr=1e-2)
data = LanguageDataModule(rows[:14], rows[14:], batch_size=2, num_workers=workers)
last = os.path.join(folder, "last.ckpt")
checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=3, save_top_k=0)
trainer = L.Trainer(max_epochs=3, accelerator="cpu", callbacks=[NPO(), checkpoints, Kill()], logger=False,
                    enable_progress_bar=False, limit_val_batches=0, gradient_clip_val=1.0)
trainer.fit(module, data, ckpt_path=last if os.path.exists(last) else None, weights_only=True)
torch.save(module.state_dict(), os.path.join(folder, "final.pt"))
"""


def run(model: Path, folder: Path, kill_at: int, workers: int) -> int:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, str(model), str(folder), str(kill_at), str(workers)]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True).returncode


@pytest.mark.parametrize("workers", [0, 1])
def test_kill_and_resume(tiny_lm: Path, tmp_path: Path, workers: int) -> None:
    # Epochs have 7 steps and checkpoints come every 3: the run is killed in its second epoch, two steps after the last.
    assert run(tiny_lm, tmp_path / "whole", kill_at=-1, workers=workers) == 0
    assert run(tiny_lm, tmp_path / "killed", kill_at=11, workers=workers) == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 9
    assert run(tiny_lm, tmp_path / "killed", kill_at=-1, workers=workers) == 0
    whole, resumed = (torch.load(tmp_path / name / "final.pt") for name in ("whole", "killed"))
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key
