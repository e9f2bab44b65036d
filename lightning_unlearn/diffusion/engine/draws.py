"""Random numbers of a training batch, as functions of the seed, the batch and the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.diffusion.engine.model import TextToImage, latent_shape
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["Draws", "batch_number", "index_of_rows", "row_numbers"]


class Draws(NamedTuple):
    """Source of the random numbers of a training batch, which makes runs resumable and independent of the processes.

    Args:
        seed: Seed of the run.
        batch: Number of the batch, see `batch_number`.
    """

    seed: int
    batch: int

    def noise(self, model: TextToImage, rows: int, *purpose: int) -> Tensor:
        """Noise to begin a sampler with, of each row its own, shape ``(rows, C, h, w)``."""
        return row_noise(latent_shape(model), row_numbers(rows), *self, *purpose).to(model.unet.device)

    def generator(self, *purpose: int) -> torch.Generator:
        """Draws what all rows and processes share: were samplers to stop apart, some processes would wait."""
        return keyed_generator(*self, *purpose)


def batch_number(module: LightningModule) -> int:
    """Number of the training batch in the run, resumed or not; 0 where nothing trains."""
    trainer = module._trainer
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer is not None and trainer.training else 0


def row_numbers(size: int) -> list[int]:
    """Number of each row of a batch among those of all processes, which take turns."""
    return [i * world_size() + rank() for i in range(size)]


def index_of_rows(batch: Mapping[str, Tensor]) -> list[int]:
    """The ``index`` of each row of a batch, or its number where rows have none."""
    return batch["index"].tolist() if "index" in batch else row_numbers(len(next(iter(batch.values()))))
