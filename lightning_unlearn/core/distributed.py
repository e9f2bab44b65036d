"""Collective operations, which also work in a single process at no cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_unlearn.core.lightning import Trainer

__all__ = [
    "Replica",
    "all_true",
    "average_over_ranks",
    "checksums",
    "full_tensor",
    "gather_objects",
    "load_full_tensor",
    "local_tensor",
    "mean_over_ranks",
    "rank",
    "replica",
    "sum_over_ranks",
    "world_size",
]


class Replica(NamedTuple):
    """The share of the data that a process reads.

    Processes of a tensor-parallel group hold parts of one replica of the model, and read the same rows.

    Args:
        rank: Number of the replica.
        total: Replicas in the run.
    """

    rank: int
    total: int


def world_size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def replica(trainer: Trainer | None) -> Replica:
    """The replica that this process belongs to; each process is one where there is no trainer to ask."""
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) if trainer is not None else None
    if shares:
        return Replica(shares["rank"], shares["num_replicas"])
    return Replica(rank(), world_size()) if trainer is None else Replica(0, 1)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def average_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over processes of several tensors, in one reduction; sharded ones are returned as they are."""
    if world_size() == 1 or any(isinstance(tensor, DTensor) for tensor in tensors):
        return list(tensors)
    flat = mean_over_ranks(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def sum_over_ranks(value: Tensor, device: torch.device | None = None) -> None:
    """Sum a tensor over all processes, in place.

    Args:
        value: The tensor.
        device: Where to reduce it, for backends that can't reduce tensors on the CPU.
    """
    if world_size() > 1:
        moved = value.to(device)
        dist.all_reduce(moved)
        if moved is not value:
            value.copy_(moved)


def all_true(flag: Tensor) -> bool:
    """Whether a boolean scalar is true on every process."""
    return bool(mean_over_ranks(flag.float()) == 1)


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks, on every process."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; shares memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def checksums(module: nn.Module) -> dict[str, float]:
    """Checksum of each parameter's bits on this process, by name. Equal sums mean that no weight changed."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {}
    for name, parameter in module.named_parameters():
        values = local_tensor(parameter.detach()).contiguous()
        if not values.is_complex() and not values.is_meta:
            sums[name] = values.view(kinds[values.element_size()]).sum(dtype=torch.int64).item()
    return sums


def full_tensor(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU of the whole tensor. A collective call where the tensor is sharded."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True)


def load_full_tensor(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(value)
