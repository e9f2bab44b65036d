"""Layout of sharded weights: names, offsets and whole tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_unlearn.core.distributed import rank
from lightning_unlearn.core.layers import stripped
from lightning_unlearn.core.reference import reshard
from lightning_unlearn.functional.saliency.threshold import Place

__all__ = ["counts", "local_part", "parameter_names", "place_of", "whole_mask"]


def parameter_names(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by their names without wrappers. A tied weight appears once."""
    reshard(module)  # a forward pass leaves the root's weights gathered, in memory that is freed later
    named = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            named[stripped(name)] = parameter
    return named


def place_of(parameter: Tensor, offset: int = 0) -> Place:
    """Where the part that this process holds lies in the flat vector of all weights."""
    if not isinstance(parameter, DTensor):
        return Place.of_whole(parameter, offset)
    size, start = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return Place(offset, tuple(parameter.shape), tuple(start), tuple(size))


def counts(parameter: Tensor) -> bool:
    """Whether this process is the one that counts what it holds, where several hold the same."""
    if not isinstance(parameter, DTensor):
        return rank() == 0
    coordinate = parameter.device_mesh.get_coordinate()
    assert coordinate is not None
    return all(c == 0 for c, p in zip(coordinate, parameter.placements, strict=True) if p.is_replicate())


def local_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """The part of a whole tensor that belongs to what this process holds of a parameter."""
    place = place_of(parameter)
    part = whole[tuple(slice(start, start + size) for start, size in zip(place.start, place.size, strict=True))]
    return part.to(parameter.device, copy=True).contiguous()


def whole_mask(parameter: Tensor, part: Tensor) -> Tensor:
    """The whole mask, on the CPU, of which each process holds a part. Collective where the parameter is sharded."""
    if isinstance(parameter, DTensor):
        whole = DTensor.from_local(
            part.to(torch.uint8),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=_strides(tuple(parameter.shape)),
        )
        part = whole.full_tensor().bool()
    return part.cpu()


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
