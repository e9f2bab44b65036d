"""Cases on the reconstruction of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DistributedSampler

import lightning_unlearn as lu
from lightning_unlearn.core.distributed import replica
from tests.distributed.layouts import GLOBAL_BATCH, LAYOUTS, Training
from tests.helpers import trainer
from tests.reconstruction import tiny as tiny_scans


class Scans(LightningDataModule):
    """The same global batches for any number of replicas; Lightning's own sampler would shuffle them."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas

    def train_dataloader(self) -> Any:
        share = replica(self.trainer)
        sampler = DistributedSampler(range(8), share.total, share.rank, shuffle=False)  # type: ignore[arg-type, var-annotated]
        return tiny_scans.loader(8, GLOBAL_BATCH // self.replicas, sampler=sampler)


class UsersUnrolled(LightningModule):
    """A user's module that takes its denoiser apart where it is to, and knows nothing of smoothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_scans.modl()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.net.denoiser, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image = self.net(tiny_scans.operator(batch), batch["kspace"]).image
        return (image - batch["target"]).abs().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def reconstructs(make: Callable[[], LightningModule], *callbacks: Callable[[], Any], **settings: Any) -> Training:
    """A case that reconstructs images."""
    wanted = {"options": {"gradient_clip_val": 1.0}, "atol": 1e-5}
    return Training(lambda _: [make() for make in callbacks], lambda _: make(), Scans, **(wanted | settings))


def smooths(mode: str, **options: Any) -> Callable[[], LightningModule]:
    """A module of the room, with a small learning rate."""
    return lambda: tiny_scans.reconstruction(mode, **{"lr": 1e-3, "n_samples": 2, "schedule": "linear", **options})


RECONSTRUCTION = {
    "SMUG": reconstructs(smooths("smug")),
    "SMUG-frozen": reconstructs(smooths("smug", stability_target="frozen"), layouts=("ddp",)),
    "SMUG-weighted": reconstructs(
        lambda: smooths("weighted_smug", encoder=lu.WeightEncoder(channels=4, depth=2, norm="group"))()
    ),
    "SMUG-adversarial": reconstructs(smooths("adversarial"), layouts=("ddp",)),
    "SmoothDenoiser": reconstructs(UsersUnrolled, lambda: lu.SmoothDenoiser("net.denoiser", 0.05, 2)),
}


def swept(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """A sweep over an odd number of images, of which a sampler gives one to both processes."""
    folder, world = path.parent / f"{layout}-swept", LAYOUTS[layout]
    sweep = lu.RobustnessSweep([0.05], [0.02], [2], [2], lu.MeasurementPGD(steps=1), dirpath=str(folder))
    run = trainer(sweep, devices=world.processes, strategy=world.strategy())
    run.test(tiny_scans.reconstruction("smug"), tiny_scans.loader(5, GLOBAL_BATCH // world.replicas), verbose=False)
    read = lu.SweepResults.read(folder / "robustness.csv").rows
    return {"rows": [tuple(row) for row in sweep.results.rows], "read": [tuple(row) for row in read]}
