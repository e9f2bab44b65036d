"""Alternation of whole passes over forget and retain rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.pairing import PairLoader

__all__ = ["Passes"]


class Passes(NamedTuple):
    """Number of batches in a pass over the rows of each role.

    Args:
        forget: Batches of forget rows.
        retain: Batches of retain rows.
    """

    forget: int = 1
    retain: int = 1

    @classmethod
    def over(cls, method: str, loader: Any) -> Passes:
        """The passes of a run.

        Args:
            method: Name of the method, for errors.
            loader: The training loader of the run.

        Raises:
            MisconfigurationException: If the length of a pass is unknown.
        """
        return cls(*(_batches(method, loader, role) for role in ("forget", "retain")))

    def at(self, batch: int) -> tuple[int, bool]:
        """The index of a batch's pair of passes, and whether the batch belongs to the pass over forget rows.

        Args:
            batch: Index of the batch from the start of the run.
        """
        number, place = divmod(batch, self.forget + self.retain)
        return number, place < self.forget


def _batches(method: str, loader: Any, role: str) -> int:
    if isinstance(loader, PairLoader) and loader.part(role) is not None:
        sampler: Any = loader.sampler
        return math.ceil(sampler.sizes[role] / (sampler.batch_sizes[role] * sampler.share.total))
    part = loader.get(role) if isinstance(loader, dict) else None
    if part is None:
        raise MisconfigurationException(
            f"{method} alternates passes over forget and retain rows, but the run has no {role} rows. Pass "
            "trainer.fit(module, {'forget': ..., 'retain': ...}) or ForgetRetainDataModule(forget, retain)."
        )
    if not hasattr(part, "__len__"):
        raise MisconfigurationException(
            f"{method} alternates whole passes, but a pass over the {role} rows has no known length. Pass "
            "trainer.fit(module, {'forget': ..., 'retain': ...}) with loaders that have one, or a "
            "ForgetRetainDataModule."
        )
    return len(part)
