"""A resumed run reads what is left of its epoch, and ends at the bits of an uninterrupted one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from lightning_unlearn import NPO, ForgetRetainDataModule, GradDiff, classifier_nll
from tests.helpers import Recorder, same, trainer
from tests.user_module import DictNet, LitNet, indexed, loaders, seeded


class Scheduled(DictNet):
    schedule: Any = None

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Only so that there is a validation."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return (
            optimizer if self.schedule is None else {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}
        )

    def step_by_step(self, optimizer: torch.optim.Optimizer) -> Any:
        return {
            "scheduler": OneCycleLR(optimizer, 0.1, int(self.trainer.estimated_stepping_batches)),
            "interval": "step",
        }

    def every_other_epoch(self, optimizer: torch.optim.Optimizer) -> Any:
        steps = self.trainer.estimated_stepping_batches
        return {"scheduler": LambdaLR(optimizer, lambda k: 1 - k / steps), "interval": "epoch", "frequency": 2}

    def plateau(self, optimizer: torch.optim.Optimizer) -> Any:
        assert self.trainer.estimated_stepping_batches
        return {"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": "unlearn/loss"}


class Rows(L.Callback):
    """The rows and the learning rate of each batch; saves after each batch, validation and epoch."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.read = folder, list[Any]()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        rows = [batch[role]["index"].tolist() for role in ("forget", "retain")]
        self.read.append((trainer.current_epoch, batch_idx, rows, rate))

    def save(self, trainer: L.Trainer, what: str) -> None:
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{len(self.read)}-{what}.ckpt")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")


def data(workers: int = 0) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(
        indexed(14, 1), indexed(9, 2), {"heldout": indexed(2, 3)}, batch_size=2, num_workers=workers
    )


def fit(schedule: str | None, rows: Rows, options: dict[str, Any], workers: int = 0, **fit_options: Any) -> Any:
    module = seeded(Scheduled)
    module.schedule = getattr(module, schedule) if schedule else None  # type: ignore[attr-defined]
    run = trainer(
        NPO(score=classifier_nll, keep_reference=True), rows, **({"max_epochs": 2, "num_sanity_val_steps": 0} | options)
    )
    run.fit(module, data(workers), **fit_options)
    return module


# Epochs have 7 batches.
@pytest.mark.parametrize(
    ("schedule", "options", "places"),
    [
        ("step_by_step", {"limit_val_batches": 0}, ["3-batch", "7-batch", "7-epoch", "10-batch"]),
        ("every_other_epoch", {"val_check_interval": 2}, ["2-batch", "2-validation", "7-epoch", "9-validation"]),
        ("plateau", {"val_check_interval": 3, "accumulate_grad_batches": 3}, ["1-batch", "3-validation", "5-batch"]),
        (None, {"accumulate_grad_batches": 3, "reload_dataloaders_every_n_epochs": 1}, ["2-batch", "8-batch"]),
        ("step_by_step", {"max_steps": 9, "max_epochs": -1, "limit_val_batches": 0}, ["3-batch", "7-epoch"]),
        (None, {"max_steps": 6, "accumulate_grad_batches": 2, "limit_val_batches": 0}, ["5-batch", "7-epoch"]),
    ],
)
def test_every_place_and_schedule(
    schedule: str | None, options: dict[str, Any], places: list[str], tmp_path: Path
) -> None:
    rows = Rows(tmp_path)
    whole = fit(schedule, rows, options)
    for place in places:
        left = Rows()
        resumed = fit(schedule, left, options, ckpt_path=tmp_path / f"{place}.ckpt", weights_only=True)
        assert left.read == rows.read[-len(left.read) :], place
        assert len(left.read) >= len(rows.read) - int(place.split("-")[0]), place
        assert same(resumed, whole), place


def test_with_workers(tmp_path: Path) -> None:
    whole = fit("step_by_step", Rows(tmp_path), {"limit_val_batches": 0, "max_epochs": 1}, workers=1)
    options = {"limit_val_batches": 0, "max_epochs": 1}
    resumed = fit("step_by_step", Rows(), options, 1, ckpt_path=tmp_path / "4-batch.ckpt", weights_only=True)
    assert same(resumed, whole)


def test_an_exception_in_the_middle_of_a_batch_loses_no_row(tmp_path: Path) -> None:
    def fail(_: Any, module: Any, *__: Any) -> None:
        if module.trainer.fit_loop.batch_idx == 4:
            raise RuntimeError("in the middle")

    options: dict[str, Any] = {"max_epochs": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    whole = fit(None, Rows(), options)
    crashed = trainer(
        NPO(score=classifier_nll, keep_reference=True),
        Recorder(on_before_backward=fail),
        OnExceptionCheckpoint(tmp_path),
        **options,
        enable_checkpointing=True,
    )
    with pytest.raises(RuntimeError, match="in the middle"):
        crashed.fit(seeded(Scheduled), data())
    left = Rows()
    resumed = fit(None, left, options, ckpt_path=tmp_path / "on_exception.ckpt", weights_only=True)
    assert [batch_idx for _, batch_idx, *_ in left.read] == [4, 5, 6]
    assert same(resumed, whole)


def test_a_second_fit_goes_on_with_the_rows_of_the_next_epoch() -> None:
    rows, again = Rows(), Rows()
    fit(None, rows, {"limit_val_batches": 0})
    run = trainer(NPO(score=classifier_nll, keep_reference=True), again, limit_val_batches=0)
    module = seeded(Scheduled)
    run.fit(module, data())
    run.fit_loop.max_epochs = 2
    run.fit(module, data())
    assert again.read == rows.read


def test_loaders_that_keep_no_place_are_named_once(tmp_path: Path) -> None:
    def resumed(place: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = trainer(GradDiff(score=classifier_nll), max_epochs=2)
            run.fit(seeded(), loaders(), ckpt_path=tmp_path / f"{place}.ckpt", weights_only=True)
        return [str(w.message) for w in caught if "keep no place in an epoch" in str(w.message)]

    save = Recorder(
        on_train_batch_end=lambda run, *_: run.save_checkpoint(tmp_path / f"{run.global_step}.ckpt"),
        on_train_epoch_end=lambda run, *_: run.save_checkpoint(tmp_path / f"epoch-{run.current_epoch}.ckpt"),
    )
    trainer(GradDiff(score=classifier_nll), save).fit(seeded(), loaders())
    (said,) = resumed("1")
    assert "after 1 of 4 batches of epoch 0" in said
    assert DataLoader.__name__ in said
    assert resumed("epoch-0") == []


class Placed(DataLoader):
    """A loader that keeps its place, as torchdata's ``StatefulDataLoader``."""

    served = start = 0

    def __iter__(self) -> Any:
        self.served, self.start = self.start, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= self.served:
                self.served += 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.served % len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["served"]


def test_gradients_that_no_checkpoint_holds_are_spoken_of(tmp_path: Path) -> None:
    def run(*callbacks: Any, **options: Any) -> LitNet:
        module = seeded()
        data = {role: Placed(loader.dataset, batch_size=4) for role, loader in loaders().items()}
        trainer(GradDiff(score=classifier_nll), *callbacks, accumulate_grad_batches=2).fit(module, data, **options)
        return module

    save = Recorder(
        on_train_batch_end=lambda run, module, out, batch, i: run.save_checkpoint(tmp_path / f"{i + 1}.ckpt")
    )
    whole = run(save)
    with pytest.warns(UserWarning, match=r"between two updates, after 1 of accumulate_grad_batches=2 batches"):
        run(ckpt_path=tmp_path / "3.ckpt", weights_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*between two updates")
        assert same(run(ckpt_path=tmp_path / "2.ckpt", weights_only=True), whole)
