"""TaskVector: the edit, what is saved of it, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_unlearn import LanguageDataModule, TaskVector, UnlearnMonitor, classifier_nll
from lightning_unlearn.functional.objectives.task_vector import negate_task_vector
from tests.helpers import Recorder, same, save_resumable, trainer
from tests.tiny_runs import LORA, Rows, SgdLM, lm
from tests.user_module import loaders, pairs, seeded


def data(forget: Rows, retain: Rows | None, **options: Any) -> LanguageDataModule:
    return LanguageDataModule(forget, retain, **({"batch_size": 2} | options))


def finetuned(module: L.LightningModule, rows: LanguageDataModule, epochs: int = 3) -> L.LightningModule:
    """The module after the same steps without an edit."""

    class NoEdit(TaskVector):
        def edit(self, module: L.LightningModule) -> None:
            self._finetuned = {}

    trainer(NoEdit(), max_epochs=epochs, limit_val_batches=0).fit(module, rows)
    return module


def test_the_edit_is_the_formula(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module, start = lm(tiny_lm), lm(tiny_lm)
    run = trainer(TaskVector(alpha=0.7), UnlearnMonitor(), max_epochs=3, limit_val_batches=0)
    run.fit(module, data(forget_rows, retain_rows))
    tuned = finetuned(lm(tiny_lm), data(forget_rows, retain_rows))
    expected = negate_task_vector(dict(start.named_parameters()), dict(tuned.named_parameters()), alpha=0.7)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    history = run.callbacks[1].history  # type: ignore[attr-defined]
    assert history[1].metrics["forget_nll"] < history[0].metrics["forget_nll"]  # fine-tuned in the first epoch


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 3}])
def test_the_monitor_and_the_last_files_have_the_edited_weights(
    limit: dict[str, int], first: bool, tiny_lm: Path, forget_rows: Rows, tmp_path: Path
) -> None:
    module, monitor = lm(tiny_lm), UnlearnMonitor()
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    callbacks = [saving, TaskVector(), monitor] if first else [monitor, TaskVector(), saving]
    rows = data(forget_rows, None)
    run = trainer(*callbacks, enable_checkpointing=True, limit_val_batches=0, **limit)
    run.fit(module, rows)
    after = monitor.evaluate(run, module).metrics
    assert monitor.history[-1].metrics == after
    for path in (tmp_path / "last.ckpt", saving.best_model_path):
        assert same(torch.load(path, weights_only=True)["state_dict"], module.state_dict())
    module.save_pretrained(tmp_path / "export")
    assert same(lm(tmp_path / "export"), module)


def test_with_adapters_the_merged_weights_obey_the_formula(tiny_lm: Path, forget_rows: Rows, tmp_path: Path) -> None:
    module = lm(tiny_lm, lora=LORA)
    rows = data(forget_rows, None)
    tuned = finetuned(lm(tiny_lm, lora=LORA), rows)
    trainer(TaskVector(alpha=0.3), max_epochs=3, limit_val_batches=0).fit(module, rows)
    tuned.save_pretrained(tmp_path / "tuned")  # type: ignore[operator]
    module.save_pretrained(tmp_path / "edited")
    start, merged, edited = (dict(lm(f).named_parameters()) for f in (tiny_lm, tmp_path / "tuned", tmp_path / "edited"))
    moved = 0.0
    for name, value in negate_task_vector(start, merged, alpha=0.3).items():
        torch.testing.assert_close(edited[name], value, atol=1e-6, rtol=0)
        moved = max(moved, (edited[name] - start[name]).abs().max().item())
    assert moved > 1e-4


def test_a_resumed_run_with_adapters_goes_on_from_the_finetuned_weights(
    tiny_lm: Path, forget_rows: Rows, tmp_path: Path
) -> None:
    def fit(epochs: int, **options: Any) -> tuple[SgdLM, L.Trainer]:
        module = lm(tiny_lm, lora=LORA)
        run = trainer(TaskVector(alpha=0.3), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data(forget_rows, None), **options)
        return module, run

    whole, _ = fit(4)
    _, half = fit(2)
    save_resumable(half, tmp_path / "half.ckpt")
    resumed, _ = fit(4, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed, whole)


def test_adapters_that_can_not_be_scaled(tiny_lm: Path, forget_rows: Rows) -> None:
    trained = lm(tiny_lm, lora=LORA)
    for name, parameter in trained.named_parameters():
        if ".lora_B." in name:
            nn.init.ones_(parameter)
    mixed = lm(tiny_lm, lora=LORA)
    mixed.model.base_model.model.model.norm.weight.requires_grad_(True)
    for module, message in ((trained, "adapters have been trained already"), (mixed, "norm.weight' trains beside")):
        with pytest.raises(MisconfigurationException, match=message):
            trainer(TaskVector(), limit_val_batches=0).fit(module, data(forget_rows, None))


def test_frozen_weights_stay_and_statistics_go_back() -> None:
    module = seeded()
    module.net.insert(1, nn.BatchNorm1d(16))
    module.net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer(TaskVector(alpha=3.0, score=classifier_nll), max_epochs=3).fit(module, {"forget": pairs(16, seed=1)})
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"net.1.weight", "net.1.bias", "net.4.weight", "net.4.bias"}


def test_a_run_that_is_stopped_is_edited_and_says_so(tmp_path: Path) -> None:
    stop = Recorder(on_train_epoch_end=lambda run, _: setattr(run, "should_stop", run.current_epoch == 1))
    module, whole = seeded(), seeded()
    with pytest.warns(UserWarning, match="stopped before max_epochs"):
        trainer(TaskVector(score=classifier_nll), stop, max_epochs=9).fit(module, loaders())
    trainer(TaskVector(score=classifier_nll), max_epochs=2).fit(whole, loaders())
    assert same(module, whole)

    stopper = EarlyStopping("unlearn/loss", min_delta=1e9, patience=1)
    with pytest.warns(UserWarning, match="stopped before max_epochs"):
        trainer(stopper, TaskVector(score=classifier_nll), max_epochs=9).fit(seeded(), loaders())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskVector(alpha=0.0), "alpha must be greater than 0, but got 0.0"),
    ],
)
def test_the_constructor_names_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
