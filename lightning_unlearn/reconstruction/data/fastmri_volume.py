"""Raw k-space volumes in HDF5 files, in the format of fastMRI."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

__all__ = ["Volume", "inspect_volume", "read_maps", "read_slice"]

_MOST_COILS = 4  # coils per column; the shape of a scan with more is in another order
_CORNER = 8  # the corner of k-space has an eighth of its rows and columns
_LARGEST_RATIO = 10.0
_LARGEST_GAPS = 0.1


class Volume(NamedTuple):
    """Description of a volume's file, without its k-space.

    Args:
        path: The file.
        shape: Slices, coils, rows (along the readout) and columns (phase encodes).
        size: Rows and columns of the scanner's image.
        acquisition: Kind of the scan, such as ``"CORPD_FBK"``; empty if the file doesn't say.
        patient: Patient id; the name of the file if it has none.
        mask: Measured columns, shape ``(W,)``; ``None`` for a fully sampled volume.
    """

    path: Path
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    acquisition: str
    patient: str
    mask: Tensor | None


def inspect_volume(path: Path) -> Volume:
    """Read the description of a file.

    Args:
        path: The file.

    Raises:
        ValueError: If it is not a complete HDF5 file, or has no k-space or that of a single coil.
        ImportError: If h5py is missing.
    """
    with _opened(path) as file:
        if "kspace" not in file:
            raise ValueError(
                f"{path} has no 'kspace', but {sorted(file)}. Raw data of fastMRI have it; images alone can't be used."
            )
        kspace = file["kspace"]
        if kspace.ndim == 3:
            raise ValueError(
                f"{path} is of a single coil: its k-space has the shape {kspace.shape}. Use the multi-coil files, "
                "whose k-space has the shape (slices, coils, rows, columns)."
            )
        if kspace.ndim != 4 or kspace.dtype.kind != "c":
            raise ValueError(
                f"The k-space of {path} must be complex of the shape (slices, coils, rows, columns), but is "
                f"{kspace.dtype} of the shape {kspace.shape}. Write real and imaginary part as one complex array, with "
                "the zero frequency in the middle."
            )
        if kspace.shape[1] >= _MOST_COILS * kspace.shape[3]:
            raise ValueError(
                f"The k-space of {path} has the shape {kspace.shape}, which would be {kspace.shape[1]} coils of "
                f"{kspace.shape[2]} rows and {kspace.shape[3]} columns, so its coils seem to come last. Write it in "
                "the order (slices, coils, rows, columns)."
            )
        mask = torch.from_numpy(np.asarray(file["mask"])).squeeze().bool() if "mask" in file else None
        if mask is not None and mask.shape != kspace.shape[-1:]:
            raise ValueError(
                f"The mask of {path} has the shape {tuple(mask.shape)}, but its k-space has {kspace.shape[-1]} columns."
            )
        if mask is not None and mask.all():
            mask = None
        acquisition, patient = (_text(file.attrs.get(name, "")) for name in ("acquisition", "patient_id"))
        return Volume(path, kspace.shape, _image_size(file), acquisition, patient or path.name, mask)


def read_slice(volume: Volume, number: int) -> Tensor:
    """The k-space of a slice.

    Args:
        volume: The volume.
        number: Number of the slice.

    Returns:
        Shape ``(coils, rows, columns)``, complex64.

    Raises:
        ValueError: If the file is truncated at this slice, its k-space is not finite or does not have the zero
            frequency in the middle, or points are missing between measured ones although the volume has no mask.
    """
    kspace = _read(volume.path, "kspace", number)
    power = kspace.abs().square().sum(0)
    where = f"slice {number} of {volume.path}"
    if _corner_power(power) > _LARGEST_RATIO * _corner_power(torch.fft.ifftshift(power)):
        raise ValueError(
            f"The k-space of {where} has the zero frequency in its corner, where masks measure the least. Move it to "
            "the middle with numpy.fft.fftshift(kspace, axes=(-2, -1)), and write the file again."
        )
    if volume.mask is None and _share_of_gaps(power > 0) > _LARGEST_GAPS:
        raise ValueError(
            f"The k-space of {where} is 0 between points that were measured, as that of an accelerated scan is, but "
            "the file has no mask, and its target would be an image with aliasing. Add 'mask' to the file, 1 for each "
            "measured column, for predictions; or use fully sampled files."
        )
    return kspace


def read_maps(path: Path, number: int) -> Tensor:
    """The sensitivities for a slice, from a file with ``maps``, or ``sens_maps``, ``(slices, coils, rows, columns)``.

    Args:
        path: The file.
        number: Number of the slice.

    Returns:
        Shape ``(coils, rows, columns)``, complex64.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no maps, is truncated, or its maps are not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no maps {path}. A file of maps has the name of its volume.")
    with _opened(path) as file:
        name = next((name for name in ("maps", "sens_maps") if name in file), None)
        if name is None:
            raise ValueError(f"{path} has neither 'maps' nor 'sens_maps', but {sorted(file)}.")
    return _read(path, name, number)


def _read(path: Path, name: str, number: int) -> Tensor:
    with _opened(path) as file:
        try:
            read = torch.from_numpy(np.asarray(file[name][number])).to(torch.complex64)
        except OSError as error:
            raise ValueError(f"Slice {number} of {path} can't be read: {error}. Copy the file again.") from None
    if not torch.view_as_real(read).isfinite().all():
        raise ValueError(
            f"The {name} of slice {number} of {path} have values that are not finite, and one such slice would make "
            "all weights NaN. Remove the volume, or leave outer slices out with middle."
        )
    return read


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError('Raw data are read by h5py: pip install "lightning-unlearn[mri]"') from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file, or not a whole one: {error}. Copy the file again.") from None


def _image_size(file: Any) -> tuple[int, int]:
    """Rows and columns of the scanner's image: from the reconstruction, from the header, or all of k-space."""
    for name in ("reconstruction_rss", "reconstruction_esc"):
        if name in file:
            return tuple(file[name].shape[-2:])
    if "ismrmrd_header" in file:
        header = ElementTree.fromstring(file["ismrmrd_header"][()])
        for element in header.iter():
            element.tag = element.tag.rpartition("}")[2]  # without the namespace
        sides = [header.findtext(f"encoding/reconSpace/matrixSize/{axis}") for axis in "xy"]
        if all(sides):
            return int(sides[0] or 0), int(sides[1] or 0)
    return file["kspace"].shape[-2:]


def _corner_power(power: Tensor) -> Tensor:
    """Power of the frequencies around the corner of k-space, which is periodic. A scalar."""
    height, width = (max(1, size // _CORNER) for size in power.shape)
    return power.roll((height // 2, width // 2), (0, 1))[:height, :width].sum()


def _share_of_gaps(measured: Tensor) -> Tensor:
    """Share of the points between the first and the last measured one of each row that were not measured. A scalar.

    Zeros outside are the padding of a smaller acquisition, or the missing part of partial Fourier.
    """
    seen = measured.int()
    between = seen.cummax(-1).values * seen.flip(-1).cummax(-1).values.flip(-1)
    return (between - seen).sum() / between.sum().clamp(min=1)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
