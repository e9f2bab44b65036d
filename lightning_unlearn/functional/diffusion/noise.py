"""Random noise determined by row number and key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unlearn.functional.random import keyed_generator

__all__ = ["row_noise"]


def row_noise(shape: Sequence[int], rows: Sequence[int], *key: int) -> Tensor:
    """Standard normal noise; the noise of a row depends only on the row's number and the key.

    A resumed run therefore equals an uninterrupted one, and two processes draw the same for their rows as one would.

    Args:
        shape: Shape of one row.
        rows: Number of each row in the whole batch, over all processes.
        *key: Purpose of the noise, such as (seed, step).

    Returns:
        Shape ``(B, *shape)``, fp32, on the CPU.

    Example:
        >>> torch.equal(row_noise((2,), [3], 0, 7), row_noise((2,), [1, 3], 0, 7)[1:])
        True
    """
    return torch.stack([torch.randn(*shape, generator=keyed_generator(*key, row)) for row in rows])
