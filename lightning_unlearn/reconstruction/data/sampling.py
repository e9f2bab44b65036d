"""Sampling masks of k-space columns for the rows of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.random import keyed_seed
from lightning_unlearn.functional.reconstruction.masks import MaskPattern, column_mask

__all__ = ["ColumnSampling"]


@dataclass(frozen=True)
class ColumnSampling:
    """Column masks for the rows of a data set, each determined by the seed and the row's number.

    Args:
        acceleration: Ratio of all columns to measured ones.
        pattern: How columns outside the centre are chosen, see
            [`column_mask`][lightning_unlearn.functional.column_mask].
        center_fraction: Share of the columns that make up the centre; by default 0.32 / acceleration.
        fixed: Whether all rows have the same mask, as in the experiments of SMUG.
        file: A ``.npy`` or ``.pt`` file with one number per column, 0 where it isn't measured. All rows then have this
            mask, and the arguments above are ignored.
        seed: Seed of the masks.

    Raises:
        ValueError: If the acceleration is less than 1, or a mask can't be made or read.

    Example:
        >>> ColumnSampling(acceleration=4)(96, row=0).sum()
        tensor(24)
    """

    acceleration: float = 4.0
    pattern: MaskPattern = "random"
    center_fraction: float | None = None
    fixed: bool = False
    file: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        width = 1 << 12
        at_least("acceleration", self.acceleration, 1)
        column_mask(width, min(self.acceleration, width), self.pattern, self.center_fraction)  # checks the arguments

    def __call__(self, width: int, row: int) -> Tensor:
        """The mask of a row.

        Args:
            width: Columns of k-space.
            row: Number of the row.

        Returns:
            Shape ``(width,)``, boolean.
        """
        if self.file is not None:
            return _read(self.file, width)
        seed = keyed_seed(self.seed, 0 if self.fixed else row + 1)
        return column_mask(width, self.acceleration, self.pattern, self.center_fraction, seed=seed)

    def at(self, acceleration: float) -> ColumnSampling:
        """The same kind of masks with another acceleration and the centre fraction that is usual for it."""
        return replace(self, acceleration=acceleration, center_fraction=None, file=None)


@lru_cache(maxsize=4)
def _read(file: str, width: int) -> Tensor:
    path = Path(file)
    if path.suffix not in (".npy", ".pt"):
        raise ValueError(f"A mask is a .npy or a .pt file, but got {file}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no mask {file}.")
    read = torch.load(path, weights_only=True) if path.suffix == ".pt" else np.load(path, allow_pickle=False)
    mask = torch.as_tensor(read).squeeze().bool()
    if mask.shape != (width,) or not mask.any():
        raise ValueError(
            f"{file} has the shape {tuple(mask.shape)} and {int(mask.sum())} measured columns, but a mask for these "
            f"images has the shape ({width},) and one at least. Make it for images that are cut to their size already."
        )
    return mask
