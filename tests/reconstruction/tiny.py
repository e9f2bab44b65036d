"""Small scans, networks and data of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn import ConvDenoiser, ISTANet, LitReconstruction, MoDL, MultiCoilMRI

SIZE, COILS = 12, 2


def scans(rows: int = 4, seed: int = 0, size: int = SIZE) -> list[dict[str, Tensor]]:
    """Scans of random images with 4 of 12 columns, each with maps and a mask of its own."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=generator)

    found = []
    for index in range(rows):
        maps = torch.view_as_complex(noise(COILS, size, size))
        maps = maps / maps.abs().square().sum(0).sqrt()
        mask = torch.zeros(1, 1, size, dtype=torch.bool)
        mask[..., torch.randperm(size, generator=generator)[: size // 3]] = True
        target = torch.view_as_complex(noise(size, size))
        target = target / target.abs().max()
        kspace = MultiCoilMRI(maps[None], mask[None]).A(target[None])[0]
        scale = torch.ones(())
        found.append(
            {
                "kspace": kspace,
                "maps": maps,
                "mask": mask,
                "target": target,
                "index": torch.tensor(index),
                "scale": scale,
            }
        )
    return found


def batch(rows: int = 2, seed: int = 0, size: int = SIZE) -> dict[str, Tensor]:
    """The scans as a batch."""
    return next(iter(loader(rows, rows, seed, size)))


def loader(rows: int = 4, batch_size: int = 2, seed: int = 0, size: int = SIZE, **options: Any) -> DataLoader:
    """Batches of scans."""
    return DataLoader(scans(rows, seed, size), batch_size=batch_size, **options)  # type: ignore[arg-type]


def operator(rows: dict[str, Tensor]) -> MultiCoilMRI:
    """The operator of a batch."""
    return MultiCoilMRI(rows["maps"], rows["mask"])


def modl(steps: int = 3, **options: Any) -> MoDL:
    """MoDL with random weights, always the same ones."""
    torch.manual_seed(0)
    return MoDL(ConvDenoiser(channels=8, depth=3), steps=steps, **options)


def ista_net(steps: int = 3) -> ISTANet:
    """ISTA-Net with random weights, always the same ones."""
    torch.manual_seed(0)
    return ISTANet(steps=steps, channels=4)


def reconstruction(mode: Any = "smug", **options: Any) -> LitReconstruction:
    """A module with few samples and a large learning rate."""
    return LitReconstruction(modl(), mode, **{"sigma": 0.05, "n_samples": 4, "lr": 1e-2, **options})
