"""Random numbers determined by a key alone, without generator state."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["keyed_generator", "keyed_seed", "mixed_bits"]


def keyed_seed(*key: int) -> int:
    """A 63-bit hash of some integers, such as (seed, step, row).

    Example:
        >>> keyed_seed(0, 7) == keyed_seed(0, 7), keyed_seed(0, 7) == keyed_seed(7, 0)
        (True, False)
    """
    mixed = 0
    for value in key:
        mixed = (mixed * 1_000_003 + value + 1) % (1 << 63)
    return mixed


def keyed_generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose seed is `keyed_seed` of some integers.

    Example:
        >>> a, b = (torch.rand(2, generator=keyed_generator(0, 7)) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """
    return torch.Generator(device).manual_seed(keyed_seed(*key))


def mixed_bits(counter: Tensor, seed: int = 0) -> Tensor:
    """63 pseudo-random bits for each counter, based on splitmix64; integer overflow wraps around on purpose.

    The shifts keep the sign, so numbers are not negative, and they differ from those of splitmix64 itself.

    Args:
        counter: Any shape, int64.
        seed: Seed of the stream.

    Returns:
        Same shape as ``counter``, int64.

    Example:
        >>> len(mixed_bits(torch.arange(1000)).unique())
        1000
    """
    x = (counter + 1) * -7046029254386353131 + (seed * 2862933555777941757) % (1 << 63)
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)
