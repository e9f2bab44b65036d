"""Images as data URIs, for pages without further files."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

__all__ = ["png"]


def png(image: Tensor) -> str:
    """Encode an image as PNG in a data URI.

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``.

    Raises:
        ImportError: If pillow is missing.

    Example:
        >>> png(torch.zeros(3, 8, 8))[:26]
        'data:image/png;base64,iVBO'
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('Images are encoded by pillow: pip install "lightning-unlearn[report]"') from None

    values = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
