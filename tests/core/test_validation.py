"""Validation sets: one for hooks with the usual arguments, all for hooks with ``dataloader_idx``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_unlearn import ClassifierMonitor, ForgetRetainDataModule, GradDiff, classifier_nll, training_step_loss
from tests.user_module import DictNet, indexed, trainer


class Usual(DictNet):
    """A validation step as Lightning's documentation writes it, and a scheduler that waits for its number."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch["input"]), batch["labels"]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self.net(batch["input"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Nameless(DictNet):
    def validation_step(self, *arguments: Any) -> None:
        assert len(arguments) == 3
        self.log(f"set_{arguments[2]}", 0.0, add_dataloader_idx=False)


class BatchHook(DictNet):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...


def data(**sets: Any) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(8, 1), indexed(8, 2), sets, batch_size=4)


def loss(module: Usual, rows: Any) -> Tensor:
    batch = default_collate([rows[i] for i in range(len(rows))])
    return nn.functional.cross_entropy(module(batch["input"]), batch["labels"])


@pytest.mark.parametrize(("sets", "read"), [({}, "retain"), ({"other": indexed(8, 3), "val": indexed(8, 4)}, "val")])
def test_a_usual_validation_step_reads_one_set(sets: dict[str, Any], read: str) -> None:
    module, rows = Usual(), data(**sets)
    run = trainer(GradDiff(score=classifier_nll))
    run.fit(module, rows)
    expected = loss(module, rows.sets[read])
    assert run.callback_metrics["val_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(rows.set_loaders()) == ["forget", "retain", *sets]


def test_a_usual_test_step_reads_one_set() -> None:
    module, rows = Usual(), data(test=indexed(8, 3))
    (result,) = trainer().test(module, rows)
    expected = loss(module, rows.sets["test"])
    assert result["test_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_steps_that_take_the_number_of_the_set_read_all() -> None:
    run = trainer(GradDiff(score=classifier_nll))
    run.fit(Nameless(), data(other=indexed(8, 3)))
    assert {"set_0", "set_1", "set_2"} <= run.callback_metrics.keys()


def test_hooks_around_the_step_count_too() -> None:
    trainer(GradDiff(score=classifier_nll)).fit(BatchHook(), data())


def test_the_demo_of_lightning_validates() -> None:
    rows = ForgetRetainDataModule(RandomDataset(32, 16), RandomDataset(32, 16), batch_size=4)
    trainer(GradDiff(score=training_step_loss)).fit(BoringModel(), rows)


def test_monitors_measure_every_set_beside_a_usual_validation_step() -> None:
    monitor = ClassifierMonitor(features=[])
    trainer(GradDiff(score=classifier_nll), monitor).fit(Usual(), data(test=indexed(8, 3)))
    assert {"forget/ua", "retain/ra", "test/ta"} <= monitor.history[-1].metrics.keys()
