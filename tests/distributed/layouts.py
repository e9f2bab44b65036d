"""Layouts of processes, and the two kinds of cases that run in them: trainings and measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn.core.distributed import full_tensor
from tests.helpers import Recorder, trainer

ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 4


class Layout(NamedTuple):
    """How processes share a run."""

    processes: int
    replicas: int
    strategy: Callable[[], Any]


LAYOUTS = {
    "one": Layout(1, 1, lambda: "auto"),
    "ddp": Layout(2, 2, lambda: "ddp"),
    "ddp_spawn": Layout(2, 2, lambda: "ddp_spawn"),
    "fsdp2": Layout(2, 2, lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
    "tp": Layout(2, 1, lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)),
}


@dataclass(frozen=True)
class Training:
    """A case that trains: as a whole, and again from a checkpoint in the midst of that run.

    Args:
        callbacks: Makes them from the folder of models.
        module: Makes it from the folder of models.
        data: Makes it for a number of replicas, with the same global batch.
        layouts: What it is tried in beside one process.
        epochs: How long it trains; the checkpoint is written half way.
        resumes: Whether to resume it.
        record: What to keep of a run beside its weights; takes the trainer and the name of the run.
        options: Options of the Trainer.
        atol: How far the weights may be from those of one process.
    """

    callbacks: Callable[[Path], list[Any]]
    module: Callable[[Path], LightningModule]
    data: Callable[[int], Any]
    layouts: tuple[str, ...] = ("ddp", "fsdp2")
    epochs: int = 2
    resumes: bool = True
    record: Callable[[Trainer, Path], dict[str, Any]] = lambda trainer, path: {}
    options: Mapping[str, Any] = field(default_factory=dict)
    atol: float = 1e-6

    def fit(self, layout: str, models: Path, *beside: Any, ckpt_path: Path | None = None) -> Trainer:
        """Train in a layout, with further callbacks beside the case's own."""
        processes, replicas, strategy = LAYOUTS[layout]
        torch.manual_seed(0)
        settings = {"max_epochs": self.epochs, "limit_val_batches": 0, **self.options}
        callbacks = [*self.callbacks(models), *beside]
        for own in callbacks:
            own.keep_reference = True  # so that the checkpoint can be resumed though this run goes on to its end
        run = trainer(*callbacks, devices=processes, strategy=strategy(), **settings)
        run.fit(self.module(models), self.data(replicas), ckpt_path=ckpt_path)
        return run

    def __call__(self, layout: str, models: Path, path: Path) -> dict[str, Any]:
        """The whole weights at the end, those of the resumed run, and what is recorded of both."""
        checkpoint = path.with_suffix(".ckpt")
        saver = [saves(checkpoint, self.epochs // 2)] if self.resumes else []
        run = self.fit(layout, models, *saver)
        result: dict[str, Any] = {"weights": whole_state(run), **self.record(run, path.with_suffix(".whole"))}
        if self.resumes:
            run = self.fit(layout, models, ckpt_path=checkpoint)
            result["resumed"] = {"weights": whole_state(run), **self.record(run, path.with_suffix(".resumed"))}
        return result

    def start(self, models: Path) -> dict[str, Tensor]:
        """The weights before training."""
        torch.manual_seed(0)
        return self.module(models).state_dict()


@dataclass(frozen=True)
class Measurement:
    """A case that is a function of the layout, the folder of models and a path of its own."""

    function: Callable[[str, Path, Path], dict[str, Any]]
    layouts: tuple[str, ...] = ("ddp",)

    def __call__(self, layout: str, models: Path, path: Path) -> dict[str, Any]:
        """What the function returns."""
        return self.function(layout, models, path)


def whole_state(run: Trainer) -> dict[str, Tensor]:
    """Every tensor of the module, gathered from its shards. A collective call."""
    return {name: full_tensor(value) for name, value in run.lightning_module.state_dict().items()}


def saves(path: Path, epochs: int) -> Recorder:
    """Writes a checkpoint when so many epochs are over."""

    def save(run: Trainer, *_: Any) -> None:
        if run.current_epoch + 1 == epochs:
            run.save_checkpoint(path)

    return Recorder(on_train_epoch_end=save)


def callback(run: Trainer, kind: type) -> Any:
    """The callback of a class."""
    (only,) = [c for c in run.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]
    return only


def refused(training: Training, *layouts: str) -> Measurement:
    """How a run is refused, and how many batches it has begun by then."""

    def run(layout: str, models: Path, path: Path) -> dict[str, Any]:
        begun = Recorder(on_train_batch_start=lambda *_: True)
        try:
            replace(training, callbacks=lambda models: [*training.callbacks(models), begun]).fit(layout, models)
        except MisconfigurationException as error:
            return {"message": str(error), "batches": len(begun.values)}
        return {"message": "", "batches": len(begun.values)}

    return Measurement(run, layouts)


def grouped(layout: str) -> tuple[int, int]:
    """The rank of this process and how many there are, for what needs no Trainer."""
    processes = LAYOUTS[layout].processes
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank() if processes > 1 else 0), processes
