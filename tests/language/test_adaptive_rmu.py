"""RMU with a target that adapts to the norm of hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_unlearn import RMU, LanguageDataModule
from tests.helpers import Recorder, same, save_resumable, trainer
from tests.tiny_runs import LONG, Rows, SgdLM, lm


def data(forget: Rows, retain: Rows | None, **options: Any) -> LanguageDataModule:
    return LanguageDataModule(forget, retain, **({"batch_size": 2} | options))


def test_the_target_of_adaptive_rmu_is_a_multiple_of_the_starting_norm(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    forget_rows[0]["answer"] += LONG

    def norm(run: L.Trainer, module: Any, batch: Any, *_: Any) -> float:
        rows = batch["forget"]
        with torch.no_grad():
            states = module.model(rows["input_ids"], rows["attention_mask"], output_hidden_states=True)
        lengths = states.hidden_states[1].norm(dim=-1)
        per_row = [length[mask].mean() for length, mask in zip(lengths, rows["attention_mask"].bool(), strict=True)]
        return torch.stack(per_row).mean().item()

    norms = Recorder(on_train_batch_start=norm)

    def fit(epochs: int, **options: Any) -> tuple[RMU, L.Trainer, SgdLM]:
        module = lm(tiny_lm)
        method = RMU(layer="model.layers.0", steering=5.0, retain_weight=1.0, adaptive=True)
        run = trainer(method, norms, max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data(forget_rows, retain_rows), **options)
        return method, run, module

    method, _, whole = fit(2)
    assert method.control is not None
    assert method.control.norm().item() == pytest.approx(5 * norms.values[0], rel=1e-5)
    _, run, _ = fit(1)
    save_resumable(run, tmp_path / "half.ckpt")
    again, _, resumed = fit(2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.control is not None
    assert torch.equal(again.control, method.control)
    assert same(resumed, whole)
