"""Norms, parts and values of tensors that may be sharded."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_unlearn.core.distributed import local_tensor, sum_over_ranks, world_size

__all__ = ["global_norm", "own_part", "set_value"]


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm of several tensors as one vector; a scalar on their device, at least in fp32.

    A collective call where they are sharded. The norm of tensors that each process holds whole is that of its own.
    """
    norms, shares, sharded = [], [], False
    for tensor in tensors:
        local = local_tensor(tensor)
        local = torch.view_as_real(local) if local.is_complex() else local
        norms.append(torch.linalg.vector_norm(local, dtype=torch.promote_types(local.dtype, torch.float32)))
        shares.append(_share(tensor))
        sharded = sharded or isinstance(tensor, DTensor)
    if not norms:
        return torch.zeros(())
    norm = torch.stack(norms)
    if not sharded:
        return torch.linalg.vector_norm(norm)
    total = (norm.square() * norm.new_tensor(shares)).sum()
    sum_over_ranks(total)
    return total.sqrt()


def own_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds where the parameter is sharded."""
    if not isinstance(parameter, DTensor):
        return whole
    size, start = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return whole[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))].clone()


def set_value(parameter: nn.Parameter, value: Tensor) -> None:
    """Let a parameter point to a value; copy it into the shard of one that is sharded."""
    if isinstance(parameter, DTensor):  # FSDP2 keeps its own pointers to the shard
        with torch.no_grad():
            local_tensor(parameter).copy_(local_tensor(value))
    else:
        parameter.data = value


def _share(tensor: Tensor) -> float:
    """One over the number of processes that hold the same part of a tensor."""
    if not isinstance(tensor, DTensor):
        return 1 / world_size()
    placed = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in placed if placement.is_shard()) / world_size()
