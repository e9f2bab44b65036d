"""Precision of an audit: the one that is asked for, or the one that the device is fast in."""

from __future__ import annotations

import time
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from lightning_unlearn.core.distributed import gather_objects

__all__ = ["Precision", "bf16_speed", "resolved"]

Precision: TypeAlias = Literal["auto", "32", "bf16"]

_FASTER = 1.5
"""bf16 has to be so many times as fast as fp32: casts, attention and optimizer gain nothing by it."""

_ROWS, _WIDTH, _TURNS = 128, 1024, 7


def resolved(precision: Precision, device: torch.device, begun: str | None = None) -> str:
    """``"32"`` or ``"bf16"``. A collective call.

    ``"auto"`` is the precision that the audit was begun in. Of a new one it is bf16 on a GPU that has such units; on a
    CPU where a linear layer runs at least 1.5 times as fast in bf16 as in fp32, which is timed; and fp32 elsewhere.
    Flags of the processor do not tell: with AMX, bf16 is several times as fast, with AVX512-BF16 alone on some
    processors twice and on others not at all, and without either it is many times slower.

    Args:
        precision: What is asked for.
        device: Where the models run.
        begun: The precision of parts that are finished.
    """
    if precision != "auto":
        return precision
    if begun is not None:
        return begun
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and bf16_speed() >= _FASTER
    return str(gather_objects("bf16" if fast else "32")[0])  # processes may time differently


@torch.no_grad()
def bf16_speed() -> float:
    """How many times as fast as in fp32 the CPU runs a linear layer in bf16: the best of a few turns of each."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, _WIDTH, generator=generator) for size in (_ROWS, _WIDTH))
    pairs = {dtype: (rows.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(pairs, float("inf"))
    for _ in range(_TURNS):  # in turns, so that other work slows both
        for dtype, pair in pairs.items():
            best[dtype] = min(best[dtype], _seconds(*pair))
    return best[torch.float32] / best[torch.bfloat16]


def _seconds(rows: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    linear(rows, weight)
    return time.perf_counter() - start
