"""Interface between an objective and the callback that smooths its forget term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from lightning_unlearn.core.lightning import LightningModule

__all__ = ["Smoothing", "Term"]

Term = Callable[[], dict[str, Tensor]]
"""Evaluates a forget term on one batch, at the weights that the module has when it is called.

It gives ``{"loss": scalar, parts...}``: the term as it goes into the total loss, its own weight included, and parts to
be logged. It may be called several times in a step, and reads no original model: what it needs of one is read before.
"""


class Smoothing(Protocol):
    """Interface of callbacks that replace the forget term's gradient by one over nearby weights."""

    def smoothed(self, module: LightningModule, term: Term) -> dict[str, Tensor]:
        """What ``term`` gives, with a smoothed loss that carries no gradient: `deposited` puts that in."""

    def deposited(self, loss: Tensor) -> Tensor:
        """The total loss of the step: its backward pass adds the smoothed gradient of the forget term."""
