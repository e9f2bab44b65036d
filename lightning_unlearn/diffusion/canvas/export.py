"""Export of the miniature's drawings as a folder in the layout of UnlearnCanvas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.files import replacing
from lightning_unlearn.diffusion.canvas.folder import StyleObjectFolder
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS
from lightning_unlearn.diffusion.data.miniature import render

__all__ = ["export_mini_canvas"]


def export_mini_canvas(
    root: str | Path, images: int = 20, size: int = 32, first: int = 0, suffix: str = ".jpg"
) -> StyleObjectFolder:
    """Write the drawings of [`MiniCanvas`][lightning_unlearn.MiniCanvas] as ``<root>/<style>/<object>/<number>.jpg``.

    Image ``i`` of an object shows the same photo in every style, as in UnlearnCanvas. The folder is written atomically.

    Args:
        root: The folder to write, which must not exist.
        images: Images of each object in each style.
        size: Side in pixels, a multiple of 8.
        first: Index from which `render` draws image 1; the following images have the following indices.
        suffix: ``".jpg"``, which changes colours a little, or ``".png"``, which does not.

    Returns:
        The folder.

    Raises:
        ImportError: If pillow is not installed.
        FileExistsError: If the folder exists.
        ValueError: If a number is out of range or there is no such suffix.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('Image files need pillow: pip install "lightning-unlearn[diffusion]"') from None
    at_least("images", images, 1)
    # Without subsampling, which would mix the colours of the few pixels.
    quality: dict[str, dict[str, Any]] = {".jpg": {"quality": 95, "subsampling": 0}, ".png": {}}
    options = quality[one_of("suffix", suffix, tuple(quality))]
    if Path(root).exists():
        raise FileExistsError(f"{root} exists, and is not written over. Give a new name, or remove it first.")
    with replacing(root) as part:
        for style, object in MINI_CANVAS.pairs(photo=True):
            (part / style / object).mkdir(parents=True)
            for number in range(1, images + 1):
                pixels = (render(object, style, first + number - 1, size).clamp(0, 1) * 255).round().byte()
                image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                image.save(part / style / object / f"{number}{suffix}", **options)
    return StyleObjectFolder(root, MINI_CANVAS, images)
