"""What several processes have to agree on. Every function works, and costs nothing, in a single process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["all_true", "full_tensor", "gather_objects", "local_tensor", "mean_over_ranks", "rank", "world_size"]


def world_size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


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


def full_tensor(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU of the whole tensor. A collective call where the tensor is sharded."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True)


def load_full_tensor(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(value)
