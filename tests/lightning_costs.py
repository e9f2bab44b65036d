"""Work that Lightning does anew for each Trainer and each logged value, and that comes out the same in every test."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lightning.fabric.utilities import registry
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

_to = _ResultMetric.to


def _moved(self: _ResultMetric, *arguments: Any, **options: Any) -> _ResultMetric:
    stays = self.is_tensor and self.value.device.type == "cpu" and arguments == (torch.device("cpu"),)
    return self if stays and not options else _to(self, *arguments, **options)


def spare() -> None:
    """Look through the installed packages for callbacks once, and leave logged values that are on the CPU there."""
    registry.entry_points = cache(registry.entry_points)
    _ResultMetric.to = _moved  # type: ignore[method-assign]
