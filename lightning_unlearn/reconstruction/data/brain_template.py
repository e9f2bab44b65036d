"""Axial slices of the ICBM 152 brain template of the nilearn package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unlearn.functional.reconstruction.cropping import centre_crop

__all__ = ["HEIGHT", "MNI_NOTICE", "BrainTemplate", "VoxelSize", "brain_template"]

VoxelSize = Literal[1, 2, 3]
HEIGHT = 189
"""Axial extent of the volume in mm. The brain is in the lower 155 of them."""

MNI_NOTICE = """\
Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill \
University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose and \
without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill \
University make no representations about the suitability of this software for any purpose. It is provided "as is" \
without express or implied warranty. The authors are not responsible for any data loss, equipment damage, property \
loss, or injury to subjects or patients resulting from the use or misuse of this software package."""
"""The notice that comes with the template."""


@dataclass(frozen=True)
class BrainTemplate:
    """The T1-weighted average of 152 brains and its tissue maps, as axial slices.

    Slice ``z`` is the mean of the millimetres ``z`` to ``z + voxel`` above the lowest one. Rows go from front to back,
    columns from left to right.

    Args:
        t1: Intensities in [0, 1], shape ``(slices, size, size)``.
        grey: Share of grey matter, of the same shape.
        white: Share of white matter.
        fluid: Share of the brain that is neither grey nor white matter.
    """

    t1: Tensor
    grey: Tensor
    white: Tensor
    fluid: Tensor


@lru_cache(maxsize=4)
def brain_template(voxel: VoxelSize, size: int) -> BrainTemplate:
    """The template at a given resolution, read from the nilearn package.

    Args:
        voxel: Side of the voxels in mm, obtained by averaging voxels of 1 mm.
        size: Side of the slices in pixels; the volume is cropped or zero-padded around its centre.

    Raises:
        ImportError: If nilearn or nibabel is missing.
        FileNotFoundError: If this version of nilearn does not contain the template.
    """
    t1, grey, white = (_volume(name, voxel, size) for name in ("t1", "gm", "wm"))
    brain = (t1 > 0.05).float()
    return BrainTemplate(t1, grey, white, (brain - grey - white).clamp(0, 1))


def _volume(name: str, voxel: int, size: int) -> Tensor:
    """One volume in [0, 1], shape ``(slices, size, size)``, a slice a millimetre."""
    try:
        import nibabel
    except ImportError:
        raise ImportError('The brain template is read by nibabel: pip install "lightning-unlearn[mri]"') from None
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ImportError('The brain template is in nilearn: pip install "lightning-unlearn[mri]"')
    # Found without importing nilearn, which takes seconds.
    path = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise FileNotFoundError(f"This nilearn has no file {path.name}. Install another: pip install 'nilearn>=0.10'.")
    volume = torch.from_numpy(np.asarray(nibabel.load(path).dataobj).copy())  # type: ignore[attr-defined]
    slices = centre_crop(volume.permute(2, 1, 0).flip(1), size * voxel, size * voxel).float() / 255
    return F.avg_pool3d(slices[None], voxel, stride=(1, voxel, voxel))[0]
