"""Optimizer, learning rate schedule and sharding of SMUG's training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.functional.reconstruction.stability import linear_decay

__all__ = ["Schedule", "load_denoiser", "optimizers", "shard"]

Schedule = Literal["constant", "linear"]


def optimizers(module: LightningModule, lr: float, schedule: Schedule, constant: int = 20, offset: int = 20) -> Any:
    """Adam over all trainable weights, as in the code of SMUG.

    Args:
        module: The module, attached to its Trainer.
        lr: Learning rate.
        schedule: ``"linear"`` decreases it over the epochs of the Trainer, see [`linear_decay`]
            [lightning_unlearn.functional.linear_decay].
        constant: Epochs at the full rate.
        offset: Epochs subtracted from the length of the run in the slope.

    Raises:
        MisconfigurationException: If the schedule needs a number of epochs that the Trainer does not have.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(trained, lr=lr, betas=(0.5, 0.999))
    if schedule == "constant":
        return adam
    epochs = module.trainer.max_epochs
    if epochs is None or epochs < 1:
        raise MisconfigurationException(
            f"schedule='linear' falls over the epochs of the run, but the Trainer has max_epochs={epochs}. Set "
            "max_epochs, or schedule='constant'."
        )
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda epoch: linear_decay(epoch, epochs, constant, offset))
    return {"optimizer": adam, "lr_scheduler": decay}


def load_denoiser(denoiser: nn.Module, path: str) -> None:
    """Load a denoiser from a checkpoint of [`LitDenoiser`][lightning_unlearn.LitDenoiser], or from a state dict.

    Args:
        denoiser: Module that receives the weights.
        path: File written by Lightning or ``torch.save``.
    """
    content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    own = {name.removeprefix("denoiser."): value for name, value in state.items() if name.startswith("denoiser.")}
    denoiser.load_state_dict(own or state)


def shard(module: LightningModule, *parts: nn.Module | None) -> None:
    """Shard parts of a module over the processes of ``ModelParallelStrategy`` (FSDP2), in ``configure_model``.

    Args:
        module: The module.
        parts: Parts that are called as modules; together they must hold all trainable weights.

    Raises:
        MisconfigurationException: If the strategy makes tensor-parallel groups, or weights are in none of the parts.
    """
    mesh = module.device_mesh
    if mesh is None:
        return
    if mesh["tensor_parallel"].size() > 1:
        raise MisconfigurationException(
            f"{type(module).__name__} does not take its layers apart. Use "
            "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1), or strategy='ddp'."
        )
    whole = [part for part in parts if part is not None]
    covered = {id(parameter) for part in whole for parameter in part.parameters()}
    outside = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in covered]
    if outside:
        raise MisconfigurationException(
            f"ModelParallelStrategy shards {type(module).__name__}'s denoiser, but {', '.join(outside[:3])} train "
            "outside of it and would differ between processes. Use strategy='ddp'."
        )
    for part in whole:
        fully_shard(part, mesh=mesh["data_parallel"])
