"""Rows and data modules of simulated or recorded MRI measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import replica
from lightning_unlearn.core.lightning import LightningDataModule, MisconfigurationException

__all__ = ["MeasurementDataModule", "Split", "collate_rows", "measured_row"]

Split = Literal["train", "val", "test", "predict"]


def measured_row(kspace: Tensor, maps: Tensor, mask: Tensor, target: Tensor, index: int, full: bool) -> dict[str, Any]:
    r"""One row of a batch, normalised so that the largest magnitude of the target is 1.

    Args:
        kspace: Fully sampled k-space, shape ``(C, H, W)``, complex.
        maps: Sensitivities of the coils, of the same shape.
        mask: Measured columns, shape ``(W,)``, boolean.
        target: The image, shape ``(H, W)``, complex.
        index: Number of the row.
        full: Whether to add the fully sampled k-space as ``full_kspace``, from which other masks can be tried.

    Returns:
        ``kspace``, 0 where it isn't measured; ``maps``; ``mask`` of shape ``(1, 1, W)``; ``target``; ``index``; and
        ``scale``, by which image and k-space were divided.
    """
    scale = target.abs().max()
    if not scale > 0:
        scale = torch.ones_like(scale)  # an empty slice stays empty
    mask = mask.view(1, 1, -1)
    row = {
        "kspace": kspace * mask / scale,
        "maps": maps,
        "mask": mask,
        "target": target / scale,
        "index": torch.tensor(index),
        "scale": scale,
    }
    return row | ({"full_kspace": kspace / scale} if full else {})


def collate_rows(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Batch of rows; rows with fewer coils get blind coils, which measure nothing and change no reconstruction.

    Args:
        rows: As `measured_row` makes them.

    Raises:
        ValueError: If images differ in their size.
    """
    sizes = sorted({tuple(row["kspace"].shape[-2:]) for row in rows})
    if len(sizes) > 1:
        raise ValueError(f"A batch has images of one size, but got {sizes}. Set size, or batch_size=1.")
    coils = max(len(row["kspace"]) for row in rows)
    many = ("kspace", "maps", "full_kspace")
    return default_collate(
        [{k: F.pad(v, (0, 0, 0, 0, 0, coils - len(v))) if k in many else v for k, v in row.items()} for row in rows]
    )


class MeasurementDataModule(LightningDataModule, ABC):
    """Base class of data modules of measurements; subclasses define the rows of their splits in ``rows``.

    The order of training rows depends only on the seed and the epoch: a resumed run reads what an uninterrupted one
    reads, and two processes with batches of ``B`` read together what one process reads with batches of ``2B``.

    Args:
        batch_size: Rows per batch and process.
        seed: Seed of the order of training rows.
        num_workers: Processes that load data.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, batch_size: int = 4, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed = at_least("batch_size", batch_size, 1), seed
        self.num_workers = at_least("num_workers", num_workers, 0)

    @abstractmethod
    def rows(self, split: Split) -> Dataset:
        """The rows of a split, map-style."""

    def train_dataloader(self) -> DataLoader:
        rows, share = self.rows("train"), replica(self.trainer)
        sampler: DistributedSampler = DistributedSampler(rows, share.total, share.rank, shuffle=True, seed=self.seed)
        return self._loader(rows, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.rows("val"))

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.rows("test"))

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.rows("predict"))

    def _loader(self, rows: Dataset, sampler: Any = None) -> DataLoader:
        if not len(rows):  # type: ignore[arg-type]
            raise MisconfigurationException(
                f"{type(self).__name__} has no rows for this stage. Give its split some, or leave the stage out."
            )
        workers: dict[str, Any] = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(rows, self.batch_size, sampler=sampler, collate_fn=collate_rows, **workers)
