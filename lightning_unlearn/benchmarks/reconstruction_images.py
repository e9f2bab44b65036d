"""Images of reconstructions and of their errors, for pages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_unlearn.report.images import png
from lightning_unlearn.report.sections import ImageRow, Images

__all__ = ["ERROR_NOTE", "ERROR_SCALE", "error_map", "magnitude", "reconstruction_images"]

ERROR_SCALE = 5.0
"""By which errors are multiplied on a page: a fifth of the largest magnitude is white."""

ERROR_NOTE = (
    f"Magnitudes, and below them the errors of the complex images times {ERROR_SCALE:g}: black is no error, white a "
    f"fifth of the largest magnitude. Each network has the attack that is worst for it."
)
"""How to read the images under attack."""

_SIDE = 128


def magnitude(image: Tensor) -> str:
    """A magnitude image (H, W) as a PNG data URI; 1 is white."""
    return png(_large(image.clamp(0, 1).expand(3, *image.shape)))


def error_map(error: Tensor) -> str:
    """The magnitude of an error (H, W), times `ERROR_SCALE`, from black over red and yellow to white."""
    heat = (ERROR_SCALE * error).clamp(0, 1) * 3
    return png(_large(torch.stack([heat, heat - 1, heat - 2]).clamp(0, 1)))


def reconstruction_images(
    title: str, images: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], target: Tensor, note: str = ""
) -> Images:
    """A grid with a column a method and, for each condition, a row of reconstructions and a row of their errors.

    Args:
        title: What it shows.
        images: By the name of the condition and the method, the magnitude of a reconstruction, (H, W), and that of its
            error.
        target: The magnitude that was to be reconstructed, of the same shape; it has a column of its own.
        note: How to read it.
    """
    methods = list(next(iter(images.values())))
    rows = []
    for condition, shown in images.items():
        rows.append(ImageRow(condition, [magnitude(target), *(magnitude(shown[name][0]) for name in methods)]))
        errors = [error_map(shown[name][1]) for name in methods]
        rows.append(ImageRow(f"error, {condition}", [error_map(torch.zeros_like(target)), *errors]))
    return Images(title, ["target", *methods], rows, note)


def _large(colours: Tensor) -> Tensor:
    """At least so many pixels a side, each pixel a square."""
    factor = max(1, _SIDE // colours.shape[-1])
    return interpolate(colours[None].float(), scale_factor=factor, mode="nearest")[0]
