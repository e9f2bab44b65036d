"""Small scans and modules that reconstruct them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn import MoDL, MultiCoilMRI
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.functional import birdcage_maps, centred_fft2, column_mask


def scan(rows: int = 3, coils: int = 2, side: int = 16, acceleration: float = 2, first: int = 0) -> dict[str, Tensor]:
    """A batch of random images."""
    generator = torch.Generator().manual_seed(first)
    target = torch.randn(rows, side, side, generator=generator, dtype=torch.complex64)
    target = target / target.abs().amax((1, 2), keepdim=True)
    maps = birdcage_maps(coils, side, side).expand(rows, -1, -1, -1).clone()
    if coils == 1:
        maps = torch.ones_like(maps)
    full = centred_fft2(maps * target[:, None])
    mask = torch.stack([column_mask(side, acceleration, seed=i) for i in range(rows)])[:, None, None]
    return {
        "kspace": full * mask,
        "maps": maps,
        "mask": mask,
        "target": target,
        "index": torch.arange(first, first + rows),
        "scale": torch.ones(rows),
        "full_kspace": full,
    }


class Rows(Dataset):
    """The rows of a batch."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["index"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: values[i] for name, values in self.batch.items()}


def loader(batch: dict[str, Tensor], size: int = 2) -> DataLoader:
    return DataLoader(Rows(batch), size)


class ZeroFilled(LightningModule):
    """A linear reconstruction, by a method that takes a batch and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def reconstruct(self, batch: Any) -> Tensor:
        return self.gain * MultiCoilMRI(batch["maps"], batch["mask"]).A_adjoint(batch["kspace"])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.reconstruct(batch)

    validation_step = test_step


class NormedDenoiser(nn.Module):
    """A denoiser with all that an attack could leave its traces in: dropout, and statistics of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
        self.out = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.body(x))


class NoisyMoDL(LightningModule):
    """A smoothed network that draws from the global random numbers, as other people's do."""

    def __init__(self, sigma: float = 0.05) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.sigma = MoDL(NormedDenoiser(), steps=2), sigma

    def reconstruct(self, batch: Any, steps: int | None = None, mode: str | None = None) -> Tensor:
        kspace = batch["kspace"]
        if mode != "vanilla":
            kspace = kspace + self.sigma * torch.randn_like(kspace)
        return self.network(MultiCoilMRI(batch["maps"], batch["mask"]), kspace, steps).image

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.reconstruct(batch)
