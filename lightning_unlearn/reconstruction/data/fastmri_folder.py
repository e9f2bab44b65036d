"""Recorded multi-coil k-space from a folder of HDF5 files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.core.checks import at_least, between, inside
from lightning_unlearn.core.progress import progress
from lightning_unlearn.functional.reconstruction.coils import maps_from_center, normalized_maps
from lightning_unlearn.functional.reconstruction.cropping import centre_crop
from lightning_unlearn.functional.reconstruction.fourier import centred_fft2, centred_ifft2
from lightning_unlearn.reconstruction.data.fastmri_volume import Volume, inspect_volume, read_maps, read_slice
from lightning_unlearn.reconstruction.data.measurements import MeasurementDataModule, Split, measured_row
from lightning_unlearn.reconstruction.data.sampling import ColumnSampling

__all__ = ["FastMRIFolder", "FastMRIRows"]

_ENDINGS = (".h5", ".hdf5")


class FastMRIRows(Dataset):
    """Slices of volumes, one row each.

    Args:
        data: The data module, which has the settings.
        volumes: The volumes.
        full: Whether rows of fully sampled volumes include their full k-space.
    """

    def __init__(self, data: FastMRIFolder, volumes: Sequence[Volume], full: bool) -> None:
        self.data, self.volumes, self.full = data, list(volumes), full
        self.slices = [(volume, number) for volume in volumes for number in data.slices_of(volume)]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, row: int) -> dict[str, Any]:
        volume, number = self.slices[row]
        return self._recorded(volume, number, row) if volume.mask is not None else self._sampled(volume, number, row)

    def _sampled(self, volume: Volume, number: int, row: int) -> dict[str, Any]:
        """A row of a fully sampled volume, which is cropped to its size and then measured with one of our masks."""
        data = self.data
        height, width = data.size_of(volume)
        images = centre_crop(centred_ifft2(read_slice(volume, number)), height, width)
        kspace = centred_fft2(images)
        maps = data.maps_for(volume, number, kspace)
        mask = data.sampling(width, (zlib.crc32(volume.path.name.encode()) << 16) + number)
        return measured_row(kspace, maps, mask, (maps.conj() * images).sum(0), row, self.full)

    def _recorded(self, volume: Volume, number: int, row: int) -> dict[str, Any]:
        """A row of an accelerated scan. It is not cropped in width: that would alias the gaps in its columns."""
        assert volume.mask is not None
        height, width = self.data.size_of(volume)[0], volume.shape[-1]
        images = centre_crop(centred_ifft2(read_slice(volume, number) * volume.mask), height, width)
        kspace = centred_fft2(images)
        maps = self.data.maps_for(volume, number, kspace, _centre_lines(volume.mask))
        zero_filled = (maps.conj() * images).sum(0)
        found = measured_row(kspace, maps, volume.mask, zero_filled, row, full=False)
        del found["target"]
        return found


class FastMRIFolder(MeasurementDataModule):
    r"""Recorded multi-coil k-space from HDF5 files in fastMRI's layout, retrospectively undersampled.

    A file is a volume: ``kspace`` of shape (slices, coils, rows, columns), complex, with the zero frequency in the
    middle and the columns as phase encodes. A slice's coil images are cropped to ``size``, and its k-space is
    recomputed; the target is their sum, weighted by the coils' sensitivities: $x = \sum_c \bar S_c x_c$. Batches have
    the same form as those of [`BrainSlices`][lightning_unlearn.BrainSlices]; if slices differ in their number of coils,
    blind coils are added.

    The folder is one of these:

    * fastMRI's, with folders that have ``train`` or ``val`` in their names, such as ``multicoil_train``. Fully sampled
      volumes of folders with ``test`` form the test split; if there are none, half of the patients of ``val`` do.
    * a folder of files. Patients are split by shares.

    Each patient, or each volume whose file does not name one, is in one split only. Prediction reads the folders with
    ``test``, or else the test split. Their volumes may be accelerated scans with a ``mask``: these have no ``target``,
    and are normalised by their zero-filled image.

    Args:
        root: The folder.
        size: Side of the images in pixels; by default that of the scanner's reconstruction.
        sampling: Masks; by default a new one for each slice, with an acceleration of 4. A slice has the same mask in
            every split.
        maps: ``"center"`` estimates sensitivities from the centre of k-space, see
            [`maps_from_center`][lightning_unlearn.functional.maps_from_center]; ``"espirit"`` uses sigpy, which takes
            seconds per slice; any other value is a folder of files of the same names with ``maps``, of k-space's shape
            or cropped.
        calibration_lines: Side of the square in the centre of k-space from which sensitivities are estimated. A mask
            with a narrower centre reconstructs with maps that saw more than it measures.
        acquisition: Use only volumes of this kind, such as ``"CORPD_FBK"``.
        middle: Share of the slices of a volume that is kept, around the middle one; the outer ones show little.
        val_share: Share of patients for validation, if a single folder holds all.
        test_share: Share of patients for the test, in the same case.
        batch_size: Rows per batch and process.
        seed: Seed of the split and of the order of rows.
        num_workers: Processes that load data.

    Raises:
        FileNotFoundError: If there is no folder, no file, or no maps for a file.
        ValueError: If a file is incomplete or has no multi-coil k-space, or a number is out of range.
        ImportError: If h5py is missing.

    References:
        Zbontar et al., *fastMRI: An Open Dataset and Benchmarks for Accelerated MRI*, arXiv:1811.08839.
    """

    def __init__(
        self,
        root: str,
        size: int | None = None,
        sampling: ColumnSampling | None = None,
        maps: str = "center",
        calibration_lines: int = 24,
        acquisition: str | None = None,
        middle: float = 1.0,
        val_share: float = 0.1,
        test_share: float = 0.1,
        batch_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.root, self.maps, self.acquisition = root, maps, acquisition
        self.size = None if size is None else at_least("size", size, 8)
        self.sampling = ColumnSampling() if sampling is None else sampling
        self.calibration_lines = at_least("calibration_lines", calibration_lines, 1)
        self.middle = between("middle", middle, 0, 1)
        self.val_share, self.test_share = inside("val_share", val_share, 0, 1), inside("test_share", test_share, 0, 1)
        inside("val_share + test_share", val_share + test_share, 0, 1, "some patients must be left to train on")

    @cached_property
    def volumes(self) -> dict[str, list[Volume]]:
        """The volumes of each split, in the order of their names."""
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder {root}.")
        folders = {name: self._inspected(root, name) for name in ("train", "val", "test")}
        if not any(folders.values()):
            everything = self._inspected(root, "")
            if not everything:
                kind = "" if self.acquisition is None else f" with the acquisition {self.acquisition!r}"
                raise FileNotFoundError(
                    f"{root} has neither {' or '.join(_ENDINGS)} files{kind} nor folders with some that have train and "
                    "val in their names."
                )
            val, test, train = self._divided(everything, self.val_share, self.test_share)
            return {"train": train, "val": val, "test": test, "predict": test}
        val, test = folders["val"], [volume for volume in folders["test"] if volume.mask is None]
        if not test:
            val, test = self._divided(val, 0.5)
        return {"train": folders["train"], "val": val, "test": test, "predict": folders["test"] or test}

    def rows(self, split: Split) -> FastMRIRows:
        volumes = self.volumes[split]
        if split != "predict" and (masked := [volume for volume in volumes if volume.mask is not None]):
            raise ValueError(
                f"{masked[0].path} is an accelerated scan without a reference, so it can't be in {split}. Move it to a "
                "folder with test in its name, from which predictions are made."
            )
        return FastMRIRows(self, volumes, full=split in ("val", "test"))

    def slices_of(self, volume: Volume) -> range:
        """The slices of a volume that are kept."""
        count = max(1, round(self.middle * volume.shape[0]))
        start = (volume.shape[0] - count) // 2
        return range(start, start + count)

    def size_of(self, volume: Volume) -> tuple[int, int]:
        """Rows and columns of the images of a volume."""
        return volume.size if self.size is None else (self.size, self.size)

    def maps_for(self, volume: Volume, number: int, kspace: Tensor, measured: int | None = None) -> Tensor:
        """Sensitivities for a slice on the grid of its k-space.

        Args:
            volume: The volume.
            number: Number of the slice.
            kspace: Its k-space after cropping, shape ``(C, H, W)``.
            measured: Number of measured columns in the centre, if not all are measured.
        """
        lines = min(self.calibration_lines, *kspace.shape[-2:], measured or kspace.shape[-1])
        if self.maps == "center":
            return maps_from_center(kspace, lines)
        if self.maps == "espirit":
            return _espirit(kspace, lines)
        maps = read_maps(Path(self.maps) / volume.path.name, number)
        if len(maps) != len(kspace):
            raise ValueError(f"{volume.path} has {len(kspace)} coils, but there are maps of {len(maps)} for it.")
        return normalized_maps(centre_crop(maps, *kspace.shape[-2:]))

    def _inspected(self, root: Path, split: str) -> list[Volume]:
        """The volumes in the folders of a split, such as ``multicoil_test_v2``; in the root itself without a split."""
        below = [path for path in sorted(root.iterdir()) if path.is_dir() and split in re.split(r"[-_. ]", path.name)]
        files = [path for folder in (below if split else [root]) for path in sorted(folder.iterdir())]
        paths = [path for path in files if path.suffix in _ENDINGS and not path.name.startswith(".")]
        volumes = [inspect_volume(path) for path in progress(paths, f"FastMRIFolder: {split or root.name}")]
        return [volume for volume in volumes if self.acquisition in (None, volume.acquisition)]

    def _divided(self, volumes: list[Volume], *shares: float) -> list[list[Volume]]:
        """Volumes divided by shares of the patients, at least one patient each, followed by the rest."""
        patients = sorted({volume.patient for volume in volumes})
        order = torch.randperm(len(patients), generator=torch.Generator().manual_seed(self.seed)).tolist()
        parts: list[list[Volume]] = []
        for share in shares:
            count = max(1, round(share * len(patients)))
            chosen, order = {patients[i] for i in order[:count]}, order[count:]
            parts.append([volume for volume in volumes if volume.patient in chosen])
        left = {patients[i] for i in order}
        return [*parts, [volume for volume in volumes if volume.patient in left]]


def _centre_lines(mask: Tensor) -> int:
    """Width of the fully measured block of columns around the centre; at least 1."""
    centre, block = len(mask) // 2, 0
    while block < centre and mask[centre - block - 1 : centre + block + 2].all():
        block += 1
    return 2 * block + 1


def _espirit(kspace: Tensor, lines: int) -> Tensor:
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError:
        raise ImportError("maps='espirit' needs sigpy: pip install sigpy. Or take maps='center'.") from None
    maps = EspiritCalib(kspace.numpy(), calib_width=lines, show_pbar=False).run()
    return normalized_maps(torch.from_numpy(maps).to(torch.complex64))
