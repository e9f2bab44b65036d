"""Random numbers that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["keyed_generator", "row_noise"]


def keyed_generator(*key: int) -> torch.Generator:
    """A generator on the CPU whose seed is a hash of some integers, such as (seed, step, row).

    Example:
        >>> a, b = (torch.rand(2, generator=keyed_generator(0, 7)) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """
    mixed = 0
    for value in key:
        mixed = (mixed * 1_000_003 + value + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def row_noise(shape: Sequence[int], rows: Sequence[int], *key: int) -> Tensor:
    """Standard normal noise; that of a row depends on the row's number and the key alone.

    So a run goes on as if it had not been interrupted, and two processes draw for their rows what one would.

    Args:
        shape: Shape of one row.
        rows: Number of each row in the whole batch, over all processes.
        *key: What the noise is for, such as (seed, step).

    Returns:
        Shape ``(B, *shape)``, fp32, on the CPU.

    Example:
        >>> torch.equal(row_noise((2,), [3], 0, 7), row_noise((2,), [1, 3], 0, 7)[1:])
        True
    """
    return torch.stack([torch.randn(*shape, generator=keyed_generator(*key, row)) for row in rows])
