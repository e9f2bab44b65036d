"""Gaussian noise determined by a key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unlearn.functional.random import keyed_generator

__all__ = ["gaussian_noise"]


def gaussian_noise(
    like: Tensor, n_samples: int, key: Sequence[int], rows: Sequence[int] | None = None, antithetic: bool = False
) -> Tensor:
    r"""Standard normal noise for each row of a batch, which depends only on the key and the row's number.

    A row gets the same noise in every batch and on every process. Complex noise has independent real and imaginary
    parts, each with standard deviation 1. Different kinds of devices draw different numbers.

    Args:
        like: Shape ``(rows, ...)``, floating or complex.
        n_samples: Number of samples for each row.
        key: Key of the stream, such as ``(seed, step)``.
        rows: Number of each row; by default 0, 1, and so on.
        antithetic: Whether the second half of the samples is the negated first half.

    Returns:
        Shape ``(n_samples, *like.shape)``, in the type and on the device of ``like``.

    Raises:
        ValueError: If ``antithetic`` is set and ``n_samples`` is odd, or if there is not one number for each row.

    Example:
        >>> noise = gaussian_noise(torch.zeros(3, 2), 4, key=(0,), antithetic=True)
        >>> noise.shape, torch.equal(noise[:2], -noise[2:])
        (torch.Size([4, 3, 2]), True)
        >>> torch.equal(noise[:, 2:], gaussian_noise(torch.zeros(1, 2), 4, (0,), rows=[2], antithetic=True))
        True
    """
    if antithetic and n_samples % 2:
        raise ValueError(f"antithetic pairs each sample with its opposite, so n_samples must be even, not {n_samples}.")
    numbers = range(len(like)) if rows is None else rows
    if len(numbers) != len(like):
        raise ValueError(f"rows numbers the rows of the batch, but there are {len(numbers)} for {len(like)} rows.")
    drawn = n_samples // 2 if antithetic else n_samples
    # Types below fp32 get the noise of fp32, rounded.
    kind = torch.promote_types(like.dtype.to_real(), torch.float32)
    parts = (2,) if like.is_complex() else ()
    noise = torch.empty(drawn, *like.shape, *parts, dtype=kind, device=like.device)
    for place, number in enumerate(numbers):
        generator = keyed_generator(*key, number, device=like.device)
        noise[:, place] = torch.randn(noise[:, place].shape, generator=generator, dtype=kind, device=like.device)
    if antithetic:
        noise = torch.cat([noise, -noise])
    return torch.view_as_complex(noise) if like.is_complex() else noise.to(like.dtype)
