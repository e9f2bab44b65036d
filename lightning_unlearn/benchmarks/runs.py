"""Parts that the runs of all benchmarks share: callbacks from descriptions, a plain Trainer, quiet libraries."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from lightning_unlearn.core.lightning import Callback, LightningModule, Trainer

__all__ = ["Description", "Meter", "build", "describe", "quiet_libraries", "takes", "trainer"]

Description = dict[str, Any]
"""A class and its arguments as in a YAML file: ``{"class_path": ..., "init_args": {...}}``."""


def describe(name: str, /, **arguments: Any) -> Description:
    """A class of this package with arguments.

    Example:
        >>> describe("NPO", beta=0.1)
        {'class_path': 'lightning_unlearn.NPO', 'init_args': {'beta': 0.1}}
    """
    return {"class_path": f"lightning_unlearn.{name}", "init_args": arguments}


def takes(description: Description, argument: str) -> bool:
    """Whether the class has an argument of this name."""
    return argument in signature(resolve_name(description["class_path"])).parameters


def build(descriptions: Iterable[Description], **offered: Any) -> list[Any]:
    """Build what is described.

    Args:
        descriptions: Classes with their arguments. A ``score`` may be given by its import path.
        offered: Arguments such as ``seed`` for each class that takes them and whose description leaves them open.
    """
    built = []
    for description in descriptions:
        arguments = {name: value for name, value in offered.items() if takes(description, name)}
        arguments |= {
            name: build([value])[0] if isinstance(value, dict) and "class_path" in value else value
            for name, value in description.get("init_args", {}).items()
        }
        if isinstance(arguments.get("score"), str):
            arguments["score"] = resolve_name(arguments["score"])
        built.append(resolve_name(description["class_path"])(**arguments))
    return built


def trainer(callbacks: Iterable[Callback] = (), **options: Any) -> Trainer:
    """A Trainer on the CPU that writes and prints nothing."""
    quiet = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **{**quiet, **options})


class Meter(Callback):
    """Seconds of processor time from the first preparation to the last step, and the rows that the model has read.

    Several runs share the machine, so wall-clock time would measure all of them.
    """

    def __init__(self) -> None:
        self.seconds, self.rows = 0.0, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook = pl_module.model.register_forward_pre_hook(self._count)  # type: ignore[union-attr]
        self._start = time.process_time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.process_time() - self._start
        self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hook.remove()

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.rows += len(inputs[0])


_NOISE = (
    "You defined a `validation_step` but have no `val_dataloader`",  # runs are measured after training
    ".*does not have many workers",  # the rows are in memory
    "GPU available but not used",
    "All members and non-members have the feature",  # the number of this attack shows it
    "FID of .* is biased",  # all methods draw as many images
    ".*LeafSpec",  # a deprecation inside Lightning
)


def quiet_libraries(*names: str) -> None:
    """Silence Lightning's messages about each small run, and warnings that mean nothing in such runs.

    Args:
        names: ``"transformers"`` and ``"diffusers"``, if they are used; they then only report errors.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name in names:  # transformers first: the import of diffusers makes it warn
        library = import_module(f"{name}.utils.logging")
        library.set_verbosity_error()
        library.disable_progress_bar()
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
