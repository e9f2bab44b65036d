"""Trainer of a module that is used outside of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_unlearn.core.lightning import MODULES, PACKAGES, resolve

__all__ = ["with_idle_trainer"]

_ATTRIBUTES: tuple[str, ...] = ("_trainer", "log")
_TRAINERS: dict[str, Any] = {}


@contextmanager
def with_idle_trainer(module: nn.Module) -> Iterator[None]:
    """Attach a Trainer that runs nothing, so that steps that use ``self.trainer`` and ``self.logger`` can be called.

    The logger accepts every call, such as ``self.logger.experiment.add_scalar``, and keeps nothing; nor does
    ``self.log``. Afterwards the module is without a Trainer, as before.

    Args:
        module: A module that is not attached to a Trainer.
    """
    if not isinstance(module, MODULES):
        yield
        return
    parts = [part for part in module.modules() if isinstance(part, MODULES)]
    before = [{name: vars(part)[name] for name in _ATTRIBUTES if name in vars(part)} for part in parts]
    trainer = _idle_trainer(module)
    for part in parts:
        vars(part)["_trainer"] = trainer
        vars(part).setdefault("log", _forget_value)
    try:
        yield
    finally:
        for part, attributes in zip(parts, before, strict=True):
            for name in _ATTRIBUTES:
                vars(part).pop(name, None)
            vars(part).update(attributes)


def _forget_value(*arguments: Any, **options: Any) -> None:
    """What ``self.log`` is outside of a run."""


def _idle_trainer(module: nn.Module) -> Any:
    package = next(package for package in PACKAGES if isinstance(module, package.LightningModule))
    if package.__name__ not in _TRAINERS:
        quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False}
        level = logging.root.manager.disable
        logging.disable(logging.INFO)  # Lightning tells the devices of each Trainer
        try:
            logger = resolve("loggers.logger.DummyLogger", package)()
            _TRAINERS[package.__name__] = package.Trainer(
                accelerator="cpu", devices=1, logger=logger, enable_model_summary=False, **quiet
            )
        finally:
            logging.disable(level)
    return _TRAINERS[package.__name__]
