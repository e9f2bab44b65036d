"""Simulated multi-coil measurements of slices of a brain template."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.functional.reconstruction.coils import birdcage_maps
from lightning_unlearn.functional.reconstruction.fourier import centred_fft2
from lightning_unlearn.reconstruction.data.brain_contrast import complex_slice
from lightning_unlearn.reconstruction.data.brain_template import HEIGHT, VoxelSize, brain_template
from lightning_unlearn.reconstruction.data.measurements import MeasurementDataModule, Split, measured_row
from lightning_unlearn.reconstruction.data.sampling import ColumnSampling

__all__ = ["BrainBands", "BrainRows", "BrainSlices"]

_SIZES = {1: 192, 2: 96, 3: 64}
_STREAMS = {"train": 1, "val": 2, "test": 3}


class BrainBands:
    """Axial bands of the template for the splits, in mm above its lowest slice.

    Neighbouring slices of an average brain are near-duplicates, so the splits are bands with a gap between them.

    Args:
        train: Lower and upper end of the training band.
        val: Lower and upper end of the validation band.
        test: Lower and upper end of the test band.
        gap: Minimum distance between two bands, in mm.

    Raises:
        ValueError: If a band is empty or outside the volume, or two are closer than the gap.
    """

    def __init__(
        self,
        train: tuple[int, int] = (24, 78),
        val: tuple[int, int] = (84, 93),
        test: tuple[int, int] = (99, 135),
        gap: int = 6,
    ) -> None:
        self.train, self.val, self.test = tuple(train), tuple(val), tuple(test)
        self.gap = at_least("gap", gap, 0)
        bands = {"train": self.train, "val": self.val, "test": self.test}
        for name, band in bands.items():
            if len(band) != 2 or not 0 <= band[0] < band[1] <= HEIGHT:
                raise ValueError(f"{name} must be a lower and an upper end in [0, {HEIGHT}] mm, but got {list(band)}.")
        for (below, lower), (above, upper) in pairwise(sorted(bands.items(), key=lambda item: item[1])):
            if upper[0] - lower[1] < gap:
                raise ValueError(
                    f"The bands {below}={list(lower)} and {above}={list(upper)} must be at least gap={gap} mm apart: "
                    "slices near to one another are almost the same image. Move or shorten one."
                )

    def places(self, split: str, voxel: int) -> range:
        """Lowest mm of each slice of a band: slices may overlap in training, but not in validation and test."""
        low, high = getattr(self, split)
        places = range(low, high - voxel + 1, 1 if split == "train" else voxel)
        if not places:
            raise ValueError(f"The band {split}={[low, high]} has no slice of {voxel} mm. Make it wider.")
        return places


class BrainRows(Dataset):
    """Rows of a split, each determined by the data module's seed and the row's number.

    Args:
        data: The data module, which has the settings.
        split: ``"train"``, ``"val"`` or ``"test"``.
        rows: Number of rows; ``None`` for each slice once.
        full: Whether rows include the fully sampled k-space.
    """

    def __init__(self, data: BrainSlices, split: str, rows: int | None, full: bool) -> None:
        self.data, self.split, self.full = data, split, full
        self.places = data.bands.places(split, data.voxel)
        self.count = len(self.places) if rows is None else rows

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < self.count:
            raise IndexError(f"There are {self.count} rows, but row {row} was asked for.")
        data, generator = self.data, self._generator(row)
        place = self._place(row, generator)
        target = complex_slice(brain_template(data.voxel, data.size), place, generator, data.variety)
        kspace = centred_fft2(data.maps * target)
        noise = torch.randn(kspace.shape, generator=generator, dtype=kspace.dtype) * 2**0.5
        kspace = kspace + data.noise * target.abs().max() * noise
        mask = data.sampling(data.size, row + (_STREAMS[self.split] << 32))
        return measured_row(kspace, data.maps, mask, target, row, self.full)

    def place(self, row: int) -> int:
        """Lowest mm of the slice of a row."""
        return self._place(row, self._generator(row))

    def _generator(self, row: int) -> torch.Generator:
        return keyed_generator(self.data.seed, _STREAMS[self.split], row)

    def _place(self, row: int, generator: torch.Generator) -> int:
        drawn = int(torch.randint(len(self.places), (), generator=generator))
        return self.places[drawn if self.split == "train" else row % len(self.places)]


class BrainSlices(MeasurementDataModule):
    r"""Simulated accelerated multi-coil scans of the ICBM 152 brain template.

    The template comes with the nilearn package, so nothing is downloaded. Its notice is ``MNI_NOTICE``. It is the
    average of 152 brains: smoother than a single brain, and magnitudes only. A row is an axial slice with its own
    contrast, orientation and smooth phase, measured as $y = M (F S_c x + \varepsilon)$. A batch has

    - ``kspace`` $y$, ``(B, C, H, W)``, and ``maps`` $S_c$ of the same shape, complex;
    - ``mask`` $M$, ``(B, 1, 1, W)``, boolean;
    - ``target`` $x$, ``(B, H, W)``, complex, with a largest magnitude of 1;
    - ``index``, the number of the row in its split, and ``scale``, by which it was divided;
    - in validation and test ``full_kspace``, $F S_c x + \varepsilon$.

    A row depends only on the seed and its number. Prediction reads the test rows.

    Args:
        voxel: Side of the voxels in mm: 1, 2 or 3.
        size: Side of the images in pixels; by default 192, 96 or 64, large enough for the brain.
        coils: Number of coils on a circle around the head, see
            [`birdcage_maps`][lightning_unlearn.functional.birdcage_maps].
        sampling: Masks; by default a new one for each row, with an acceleration of 4.
        bands: Axial bands of the splits.
        variety: Whether rows differ in contrast and orientation, besides their phase.
        noise: Standard deviation of $\varepsilon$ in real and imaginary parts, in units of the largest magnitude.
        train_rows: Rows per training epoch, each a slice drawn from the band.
        test_rows: Rows of the test; by default each slice of the band once.
        batch_size: Rows per batch and process.
        seed: Seed of the rows and of their order.
        num_workers: Processes that load data.

    Raises:
        ValueError: If a number is out of range.
        ImportError: If nilearn or nibabel is missing.

    Example:
        >>> data = BrainSlices(voxel=3, coils=2, test_rows=4)
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["kspace"].shape, batch["target"].abs().amax((1, 2))
        (torch.Size([4, 2, 64, 64]), tensor([1., 1., 1., 1.]))

    References:
        Fonov et al., *Unbiased Average Age-Appropriate Atlases for Pediatric Studies*, NeuroImage 54(1), 2011.
    """

    def __init__(
        self,
        voxel: VoxelSize = 2,
        size: int | None = None,
        coils: int = 4,
        sampling: ColumnSampling | None = None,
        bands: BrainBands | None = None,
        variety: bool = True,
        noise: float = 0.0,
        train_rows: int = 800,
        test_rows: int | None = None,
        batch_size: int = 4,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.voxel = one_of("voxel", voxel, VoxelSize)
        self.size = at_least("size", _SIZES[voxel] if size is None else size, 8)
        self.coils = at_least("coils", coils, 1)
        self.sampling = ColumnSampling() if sampling is None else sampling
        self.bands = BrainBands() if bands is None else bands
        self.variety, self.noise = variety, at_least("noise", noise, 0)
        self.train_rows = at_least("train_rows", train_rows, 1)
        self.test_rows = None if test_rows is None else at_least("test_rows", test_rows, 1)

    @cached_property
    def maps(self) -> Tensor:
        """Sensitivities of the coils, shape ``(C, H, W)``."""
        return birdcage_maps(self.coils, self.size, self.size)

    def rows(self, split: Split) -> BrainRows:
        if split == "train":
            return BrainRows(self, "train", self.train_rows, full=False)
        if split == "val":
            return BrainRows(self, "val", None, full=True)
        return BrainRows(self, "test", self.test_rows, full=True)
