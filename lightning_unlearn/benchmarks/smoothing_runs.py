"""Runs of the comparison of smoothing under relearning: unlearn to a level of forgetting, then attack."""

from __future__ import annotations

import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.benchmarks.entries import Setting
from lightning_unlearn.benchmarks.grid import Cell, Outcome
from lightning_unlearn.benchmarks.runs import build, quiet_libraries, trainer
from lightning_unlearn.benchmarks.smoothing_sharpness import sharpness
from lightning_unlearn.core.lightning import Callback, LightningModule, Trainer, seed_everything
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.smoothing.averaging import UnlearnWeightAveraging

__all__ = ["Cost", "Curve", "Forgetting", "SmoothingCell", "StopAtForgetting", "Subject", "perform"]


class Forgetting(NamedTuple):
    """How far some rows are forgotten.

    Args:
        nll: Mean negative log-likelihood of the rows, per supervised token of a language model, in nats.
        share: Forgotten share, in [0, 1]: the error of a classifier, one minus the mean probability of a fact.
    """

    nll: float
    share: float


class Curve(NamedTuple):
    """Forgotten share of the rows that are not taught, against the updates of a relearning attack."""

    steps: list[int]
    forgotten: list[float]


@dataclass(frozen=True, kw_only=True)
class SmoothingCell(Cell):
    """A setting of an objective and a strategy, or the starting weights, and the attack on the result.

    Args:
        setting: Learning rate and callbacks; without callbacks the starting weights are attacked.
        nats: Mean negative log-likelihood of the forget rows at which the run ends.
        max_updates: Updates after which the run ends in any case.
        sharpness_steps: Steps of the search for the sharpness; 0 leaves it out.
    """

    setting: Setting = field(default_factory=lambda: Setting(lr=1.0))
    nats: float = 8.0
    max_updates: int = 200
    sharpness_steps: int = 10


class Subject(ABC):
    """A model that unlearns, with its rows and the attacks on it.

    Args:
        module: The model.
        data: Its data module.
        options: Options of the Trainer.
    """

    def __init__(self, module: LightningModule, data: Any, **options: Any) -> None:
        self.module, self.data, self.options = module, data, options

    @abstractmethod
    def forgetting(self, module: LightningModule) -> Forgetting:
        """What is forgotten of all forget rows."""

    @abstractmethod
    def forget_nll(self, module: LightningModule) -> Tensor:
        """Mean negative log-likelihood of the forget rows, with its graph."""

    @abstractmethod
    def utility(self, run: Trainer) -> dict[str, float]:
        """Shares of right answers on the other sets; ``"utility"`` is what tuning counts."""

    @abstractmethod
    def relearned(self) -> Curve:
        """The course of the relearning attack."""

    @abstractmethod
    def rounded(self) -> float:
        """Forgotten share of all forget rows once the weights are rounded to int4."""


class StopAtForgetting(Callback):
    """Ends a run at the first update after which the forget rows have reached a level of forgetting.

    It measures during validation, when averaged weights replace the live ones, and has to come before
    `UnlearnWeightAveraging` in the list of callbacks.

    Args:
        measure: Measures the module.
        nats: The level, mean negative log-likelihood of the forget rows.
        first: Earliest update at which a run may end, such as that of the second snapshot of an average.
    """

    def __init__(self, measure: Callable[[LightningModule], Forgetting], nats: float, first: int = 1) -> None:
        self.measure, self.nats, self.first = measure, nats, first
        self.course: list[Forgetting] = []

    @property
    def is_reached(self) -> bool:
        """Whether the level was reached."""
        return bool(self.course) and self.course[-1].nll >= self.nats

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with evaluating(pl_module), trainer.precision_plugin.forward_context():
            self.course.append(self.measure(pl_module))
        if self.is_reached and trainer.global_step >= self.first:
            trainer.should_stop = True


class Cost(Callback):
    """Forward passes of the updates, their rows, and seconds of processor time, without measurements."""

    def __init__(self) -> None:
        self.passes, self.rows, self.seconds = 0, 0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook = pl_module.model.register_forward_pre_hook(self._count, with_kwargs=True)  # type: ignore[union-attr]
        self._counts = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._counts, self._start = True, time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += time.process_time() - self._start
        self._counts = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hook.remove()

    def _count(self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._counts:
            self.passes += 1
            self.rows += len(next(x for x in (*inputs, *named.values()) if isinstance(x, Tensor)))


def perform(cell: SmoothingCell, subject: Subject) -> Outcome:
    """One run: unlearn to the level, measure what else is lost and the sharpness of the forget loss, and attack."""
    quiet_libraries()
    # The level ends nearly every run, and the mean over the weights is taken all the same.
    warnings.filterwarnings("ignore", message="The run stopped before max_epochs or max_steps")
    seed_everything(cell.seed, verbose=False)
    module, cost, callbacks = subject.module, Cost(), build(cell.setting.callbacks, seed=cell.seed)
    averages = [callback for callback in callbacks if isinstance(callback, UnlearnWeightAveraging)]
    first = max((average.start_step + average.every_n_steps for average in averages), default=1)
    stop = StopAtForgetting(subject.forgetting, cell.nats, first)
    with tempfile.TemporaryDirectory() as scratch:
        often: Any = {"val_check_interval": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        updates = cell.max_updates if callbacks else 0
        options: Any = {"max_steps": updates, "default_root_dir": scratch, **often, **subject.options}
        run = trainer([stop, *callbacks, cost], **options)
        # Validation is only the turn of StopAtForgetting, which reads the forget rows itself.
        subject.data.val_dataloader = lambda: DataLoader([0])  # type: ignore[arg-type]
        module.validation_step = lambda *batch: None  # type: ignore[method-assign]
        try:
            run.fit(module, subject.data)
        except FloatingPointError as error:
            return {"error": str(error)}
        found: dict[str, Any] = {"reached": stop.is_reached or not callbacks, "updates": run.global_step}
        found |= {name: getattr(cost, name) for name in ("passes", "rows", "seconds")}
        found["utility"] = subject.utility(run)
    with evaluating(module):
        before = subject.forgetting(module)
    if cell.sharpness_steps:
        found["sharpness"] = sharpness(module, subject.forget_nll, steps=cell.sharpness_steps)
    curve = subject.relearned()
    return {
        **found,
        **{"nll": before.nll, "forgotten": before.share, "rounded": subject.rounded()},
        "relearning": curve._asdict(),
    }
