"""Schedule of monitors, and the names of their metrics."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_unlearn import ClassifierMonitor, ForgetRetainDataModule, GradientAscent, UnlearnMonitor, classifier_nll
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.monitor import Monitor
from tests.user_module import DictNet, indexed, trainer


class Steps(Monitor):
    """Measures the number of steps."""

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        return Evaluation(trainer.global_step, {"steps": float(trainer.global_step)})

    def show(self, logger: Logger, step: int) -> None: ...


MONITORS: dict[str, Callable[[], Monitor]] = {
    "eval/steps": Steps,
    "eval/forget_nll": lambda: UnlearnMonitor(score=classifier_nll),
    "eval/forget/ua": lambda: ClassifierMonitor(features=[]),
}
every_monitor = pytest.mark.parametrize("key", list(MONITORS))


def data() -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(8, 1), indexed(8, 2), {"test": indexed(8, 3)}, batch_size=4)


def fit(*callbacks: Any, **options: Any) -> Trainer:
    run = trainer(GradientAscent(score=classifier_nll), *callbacks, **{"limit_val_batches": 0, **options})
    run.fit(DictNet(), data())
    return run


@pytest.mark.parametrize(("every", "steps"), [(0, [0, 8]), (1, [0, 2, 4, 6, 8]), (3, [0, 6, 8])])
def test_it_measures_before_every_so_many_epochs_and_at_the_end(every: int, steps: list[int]) -> None:
    monitor = Steps(every)
    fit(monitor, max_epochs=4)
    assert [evaluation.step for evaluation in monitor.history] == steps


@every_monitor
def test_early_stopping_can_monitor_the_numbers(key: str) -> None:
    stop = EarlyStopping(key, mode="max", stopping_threshold=-1.0, check_on_train_epoch_end=True)
    monitor = MONITORS[key]()
    run = fit(monitor, stop, max_epochs=4)
    assert run.current_epoch == 1
    assert run.callback_metrics[key] == pytest.approx(monitor.history[-1].metrics[key.removeprefix("eval/")])


@every_monitor
def test_checkpoints_are_chosen_by_the_numbers(key: str, tmp_path: Path) -> None:
    monitor = MONITORS[key]()
    best = ModelCheckpoint(tmp_path, monitor=key, mode="min", filename="{epoch}", save_on_train_epoch_end=True)
    fit(monitor, best, max_epochs=3, enable_checkpointing=True)
    values = [evaluation.metrics[key.removeprefix("eval/")] for evaluation in monitor.history[1:]]
    assert best.best_model_score == pytest.approx(min(values))
    assert Path(best.best_model_path).name == f"epoch={values.index(min(values))}.ckpt"


@every_monitor
def test_loggers_get_every_evaluation_once(key: str, tmp_path: Path) -> None:
    monitor, logger = MONITORS[key](), CSVLogger(tmp_path)
    fit(monitor, logger=logger, log_every_n_steps=1, max_epochs=2)
    with Path(logger.log_dir, "metrics.csv").open(encoding="utf-8") as file:
        logged = [(int(row["step"]), float(value)) for row in csv.DictReader(file) if (value := row[key])]
    name = key.removeprefix("eval/")
    assert logged == [(e.step, pytest.approx(e.metrics[name])) for e in monitor.history]


def test_a_negative_number_of_epochs_is_an_error() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be at least 0, but got -1"):
        Steps(-1)
