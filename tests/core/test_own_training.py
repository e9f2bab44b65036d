"""The module's own training: arguments of ``training_step``, batch hooks, collected outputs, monitored values."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ThroughputMonitor,
)
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_unlearn import NPO, GradDiff, classifier_nll, training_step_loss
from tests.helpers import Recorder, same
from tests.user_module import LitNet, loaders, nll, pairs, seeded, trainer, weights


def objective(score: Any = classifier_nll) -> GradDiff:
    return GradDiff(score=score)


def plain(step: Any) -> Any:
    @functools.wraps(step)
    def decorated(*arguments: Any, **options: Any) -> Any:
        return step(*arguments, **options)

    return decorated


def bare(step: Any) -> Any:
    return lambda self, *arguments: step(self, *arguments)


def loss(self: LitNet, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(self(batch[0]), batch[1])


STEPS: dict[str, Any] = {
    "usual": lambda self, batch, batch_idx: loss(self, batch),
    "no_index": lambda self, batch: loss(self, batch),
    "other_names": lambda self, data, number: loss(self, data),
    "named_only": lambda self, batch, *, batch_idx: loss(self, batch),
    "named_default": lambda self, batch, *, batch_idx=0: loss(self, batch),
    "kwargs": lambda self, batch, **kwargs: loss(self, batch),
    "args": lambda self, *args: loss(self, args[0]),
    "iterator": lambda self, dataloader_iter: loss(self, next(dataloader_iter)[0]),
    "decorated": plain(lambda self, batch, batch_idx: loss(self, batch)),
    "bare": bare(lambda self, batch, batch_idx: loss(self, batch)),
    "dict": lambda self, batch, batch_idx: {"loss": loss(self, batch), "more": 1},
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_training_step_is_called_whatever_its_arguments(kind: str) -> None:
    module, expected = seeded(type("Net", (LitNet,), {"training_step": STEPS[kind]})), seeded()
    for net in (module, expected):
        trainer(objective(training_step_loss)).fit(net, loaders())
    assert same(module, expected)


def test_a_step_that_stands_on_the_object_is_the_one_that_is_called() -> None:
    module = seeded()
    module.training_step = lambda batch, batch_idx: 0 * loss(module, batch)  # type: ignore[method-assign]
    before = seeded()
    trainer(objective(training_step_loss)).fit(module, loaders())
    moved = [(a - b).abs().max() for a, b in zip(module.parameters(), before.parameters(), strict=True)]
    assert max(moved) < 0.2  # weight decay alone


def test_it_gets_the_number_of_the_batch() -> None:
    numbers = []

    class Numbers(LitNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            numbers.append(batch_idx)
            return loss(self, batch)

    trainer(objective(training_step_loss)).fit(seeded(Numbers), loaders(8, 8))
    assert numbers == [0, 0, 1, 1]


def test_a_batch_whose_step_gives_none_is_skipped() -> None:
    class Skips(LitNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else loss(self, batch)

    steps = Recorder(on_train_batch_end=lambda run, module, *_: weights(module))
    trainer(objective(training_step_loss), steps).fit(seeded(Skips), loaders(16, 16))
    assert [torch.equal(a, b) for a, b in pairwise(steps.values)] == [True, False, True]


class Collects(LitNet):
    """As Lightning's guide to 2.0 writes it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.training_step_outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        value = loss(self, batch)
        self.training_step_outputs.append(value)
        return value

    def on_train_epoch_end(self) -> None:
        self.log("training_epoch_average", torch.stack(self.training_step_outputs).mean())
        self.training_step_outputs.clear()


class Counts(LitNet):
    """A metric that a helper of the training step updates."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.accuracy = MulticlassAccuracy(3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared(batch, "train")

    def shared(self, batch: Any, stage: str) -> Tensor:
        self.accuracy(self(batch[0]), batch[1])
        self.log(f"{stage}_loss", loss(self, batch))
        return loss(self, batch)

    def on_train_epoch_end(self) -> None:
        self.log("train_accuracy", self.accuracy.compute())
        self.accuracy.reset()


class Plateau(LitNet):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-4)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}


@pytest.mark.parametrize("kind", [Collects, Counts, Plateau])
def test_hooks_and_schedulers_that_live_on_the_training_step_work_and_change_nothing(
    kind: type[LitNet], tmp_path: Any
) -> None:
    module = seeded(kind)
    run = trainer(objective(), max_epochs=2)
    run.fit(module, loaders())
    logged = {"Collects": "training_epoch_average", "Counts": "train_accuracy", "Plateau": "train_loss"}[kind.__name__]
    assert logged in run.callback_metrics
    if kind is not Plateau:
        expected = seeded()
        trainer(objective(), max_epochs=2).fit(expected, loaders())
        assert same(expected, module)


@pytest.mark.parametrize("score", [classifier_nll, training_step_loss])
def test_what_is_collected_is_of_the_retain_rows(score: Any) -> None:
    module = seeded(Collects, lr=0.0)
    run = trainer(objective(score))
    run.fit(module, loaders())
    assert run.callback_metrics["training_epoch_average"].item() == pytest.approx(nll(module, 16, 2).mean().item())


class Weighs(LitNet):
    """A loss with class weights, of which it logs the mean over an epoch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.class_weights = torch.ones(3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        value = nn.functional.cross_entropy(self(batch[0]), batch[1], self.class_weights)
        self.log("train_loss", value, on_step=False, on_epoch=True)
        return value


@pytest.mark.parametrize("score", [classifier_nll, training_step_loss])
def test_a_monitored_loss_is_of_the_retain_rows(score: Any) -> None:
    module, expected = seeded(Weighs, lr=0.0), seeded(Weighs)
    run = trainer(objective(score), EarlyStopping("train_loss"))
    run.fit(module, loaders())
    assert run.callback_metrics["train_loss"].item() == pytest.approx(nll(module, 16, 2).mean().item())
    module = seeded(Weighs)
    for net, beside in ((module, [EarlyStopping("train_loss")]), (expected, [])):
        trainer(objective(score), *beside).fit(net, loaders())
    assert same(module, expected)


@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
def test_callbacks_may_monitor_what_the_training_step_logs(callback: Any, tmp_path: Any) -> None:
    options = {"dirpath": tmp_path} if callback is ModelCheckpoint else {}
    beside = callback(monitor="train_loss", **options)
    run = trainer(objective(), beside, enable_checkpointing=callback is ModelCheckpoint)
    run.fit(seeded(), loaders())
    assert "train_loss" in run.callback_metrics


def test_the_step_does_not_run_where_nothing_needs_it() -> None:
    class Never(LitNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError

    trainer(objective(), Recorder()).fit(seeded(Never), loaders())


class Looks(LitNet):
    """Batch hooks that unpack the batch, and outputs that are more than the loss."""

    seen: list[Any]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": loss(self, batch), "logits": self(batch[0]).detach()}

    def on_train_batch_start(self, rows: Any, number: int) -> None:  # Lightning passes them by place
        x, y = rows
        self.seen.append((x.shape, y.shape))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        x, _ = batch
        self.seen.append(outputs["logits"].shape[0] == len(x))


class Watches(L.Callback):
    def __init__(self) -> None:
        self.rows: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        self.rows.append(len(x))


class KnowsRoles(Watches):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append(len(batch["forget"][0]))


class TakesAnyMapping(Watches):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows += [len(rows[0]) for _, rows in batch.items()]


def test_batch_hooks_see_rows() -> None:
    module, watches, knows, takes_any = seeded(Looks), Watches(), KnowsRoles(), TakesAnyMapping()
    module.seen = []
    data = {"forget": pairs(8, seed=1, batch_size=4), "retain": pairs(12, seed=2, batch_size=6)}
    trainer(NPO(score=classifier_nll), watches, knows, takes_any).fit(module, data)
    assert module.seen == 2 * [((6, 8), (6,)), True]
    assert watches.rows == [6, 6]
    assert knows.rows == [4, 4]
    assert takes_any.rows == [4, 6, 4, 6]
    assert not {"on_train_batch_start", "on_train_batch_end"} & (vars(module).keys() | vars(watches).keys())


def test_throughput_counts_the_rows_of_every_role(tmp_path: Any) -> None:
    from lightning.pytorch.loggers import CSVLogger

    monitor = ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=2)
    run = trainer(objective(), monitor, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    run.fit(seeded(), loaders())
    assert run.global_step == 4
    assert monitor._samples[next(iter(monitor._samples))] == 32


def test_accumulation_that_changes_with_the_epoch() -> None:
    steps = Recorder(on_train_epoch_end=lambda run, *_: run.global_step)
    trainer(objective(), GradientAccumulationScheduler({1: 2}), steps, max_epochs=2).fit(seeded(), loaders())
    assert steps.values == [4, 6]


class Validates(LitNet):
    """Its validation calls its training step, and its training step takes one argument more."""

    def training_step(self, batch: Any, batch_idx: int, log: bool = True) -> Tensor:
        value = loss(self, batch)
        if log:
            self.log("train_loss", value)
        return value

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx=batch_idx, log=False))


def test_a_validation_step_may_call_the_training_step() -> None:
    module = seeded(Validates)
    run = trainer(objective(), EarlyStopping("val_loss"), max_epochs=2)
    run.fit(module, loaders(), pairs(8, seed=3, batch_size=8))
    assert run.callback_metrics["val_loss"].item() == pytest.approx(nll(module, 8, 3).mean().item())
