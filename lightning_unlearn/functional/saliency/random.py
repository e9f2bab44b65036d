"""Random saliency scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["random_score"]


def random_score(shape: Sequence[int], seed: int) -> Tensor:
    r"""Uniformly drawn scores: :math:`S_i \sim U[0, 1)`.

    Args:
        shape: Shape of the weights.
        seed: Seed; the same seed gives the same scores on every process and device.

    Returns:
        Scores of that shape on the CPU. The global generator is not used.

    Example:
        >>> bool((random_score((4,), seed=0) == random_score((4,), seed=0)).all())
        True
    """
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed))
