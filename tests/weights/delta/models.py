"""State dicts that differ in a share of their bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.helpers import bits

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def move(tensor: Tensor, density: float, seed: int = 0) -> Tensor:
    """A copy in which this share of the weights has other bits."""
    generator = torch.Generator().manual_seed(seed)
    count = round(density * tensor.numel())
    where = torch.randperm(tensor.numel(), generator=generator)[:count]
    flat = bits(tensor).clone().flatten()
    flat[where] ^= 1
    return flat.view(tensor.dtype).view(tensor.shape)


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir()) if f.is_file()}
