"""Centre cropping of images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["centre_crop"]


def centre_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The part of an image around its centre pixel, zero-padded if the image is smaller.

    The centre pixel ``(H // 2, W // 2)``, where the centred Fourier transform has its origin, stays the centre.

    Args:
        image: Shape ``(..., H, W)``.
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        Shape ``(..., height, width)``.

    Example:
        >>> import torch
        >>> centre_crop(torch.arange(5.0)[None], 1, 3)
        tensor([[1., 2., 3.]])
    """
    pads = []
    for size, wanted in ((image.shape[-1], width), (image.shape[-2], height)):
        before = wanted // 2 - size // 2
        pads += [before, wanted - size - before]
    return F.pad(image, pads)
