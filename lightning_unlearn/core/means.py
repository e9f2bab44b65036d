"""Harmonic mean."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["harmonic_mean"]


def harmonic_mean(values: Iterable[float]) -> float:
    r"""Harmonic mean, $k / \sum_i \frac{1}{x_i}$; 0 where any value is 0.

    Args:
        values: At least one number, none negative.

    Raises:
        ValueError: If there are no values, or one is negative or NaN.

    Example:
        >>> harmonic_mean([1.0, 0.5]), harmonic_mean([1.0, 0.0])
        (0.6666666666666666, 0.0)
    """
    values = [float(value) for value in values]
    if not values or not all(value >= 0 for value in values):
        raise ValueError(f"A harmonic mean needs values of at least 0, but got {values}.")
    return len(values) / math.fsum(1 / value for value in values) if all(values) else 0.0
