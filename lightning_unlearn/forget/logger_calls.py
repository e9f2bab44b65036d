"""Callback for modules that call methods of another logger than that of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_unlearn.core.lightning import CSV_LOGGERS, Callback, LightningModule, Trainer, rank_zero_warn

__all__ = ["IgnoreLoggerCalls"]


class IgnoreLoggerCalls(Callback):
    """Lets a ``CSVLogger`` accept calls of methods that other loggers have.

    Modules call the logger that they were written for, such as ``self.logger.experiment.add_scalar`` of TensorBoard or
    ``self.logger.log_image`` of W&B. Such a call warns once for each method, does nothing, and returns ``None``. What a
    module logs by ``self.log`` is kept.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Extend the loggers of the run."""
        warned: set[str] = set()
        for logger in trainer.loggers:
            if isinstance(logger, CSV_LOGGERS):
                logger.__class__ = _accepting(type(logger), warned)


def _accepting(kind: Any, warned: set[str]) -> Any:
    """A class of loggers that ignores methods that it does not have."""

    def experiment(self: Any) -> _Writer:
        return _Writer(kind.experiment.__get__(self), warned)

    def missing(self: Any, name: str) -> Callable[..., None]:
        return _ignored(f"self.logger.{name}", name, warned)

    fields = {"experiment": property(experiment), "__getattr__": missing, "__module__": kind.__module__}
    # Of another name than its parent: a command line that is given "CSVLogger" looks among all loggers that exist.
    return type(f"Accepting{kind.__name__}", (kind,), fields)


class _Writer:
    """The writer of a ``CSVLogger``, which ignores what it does not have."""

    def __init__(self, writer: Any, warned: set[str]) -> None:
        self._writer, self._warned = writer, warned

    def __getattr__(self, name: str) -> Any:
        if hasattr(self._writer, name):
            return getattr(self._writer, name)
        return _ignored(f"self.logger.experiment.{name}", name, self._warned)

    def __setitem__(self, key: Any, value: Any) -> None:
        _warn("self.logger.experiment[...]", self._warned)


def _ignored(call: str, name: str, warned: set[str]) -> Callable[..., None]:
    if name.startswith("_"):
        raise AttributeError(f"{call} does not exist.")

    def ignore(*arguments: Any, **options: Any) -> None:
        _warn(call, warned)

    return ignore


def _warn(call: str, warned: set[str]) -> None:
    if call not in warned:
        warned.add(call)
        rank_zero_warn(
            f"The module calls {call}, which is of another logger. The call is ignored here; what the module logs by "
            "self.log is in private/metrics.csv."
        )
