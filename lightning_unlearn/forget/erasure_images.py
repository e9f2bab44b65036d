"""Images of a model before and after erasure, kept as files so that a killed request draws none of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.progress import progress
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.forget.erasure_prompts import Picture

__all__ = ["Drawing", "draw_pictures", "thumbnail"]

_SIDE = 160  # pixels of an image on the page, at most


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Args:
        images: Images of each prompt to forget; prompts to keep have one.
        steps: Steps of the sampler; by default 50, and 20 of the miniature.
        guidance: Weight of classifier-free guidance; by default 7.5, and 4 of the miniature.
        batch_size: Images drawn together.

    Raises:
        ValueError: If a number is out of range.
    """

    images: int = 3
    steps: int | None = None
    guidance: float | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        at_least("images", self.images, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("steps", 1 if self.steps is None else self.steps, 1)
        at_least("guidance", 0 if self.guidance is None else self.guidance, 0)

    def sampler(self, miniature: bool) -> dict[str, Any]:
        """Steps and guidance for a pipeline."""
        default = {"steps": 20, "guidance": 4.0} if miniature else {"steps": 50, "guidance": 7.5}
        given = {"steps": self.steps, "guidance": self.guidance}
        return {name: default[name] if value is None else value for name, value in given.items()}


def draw_pictures(
    module: LitTextToImage, pictures: Sequence[Picture], folder: Path, label: str, batch_size: int
) -> Tensor:
    """Draw the images of a model that are not drawn yet, and read all of them.

    Args:
        module: The model.
        pictures: What to draw.
        folder: Where the images are kept, as PNG files.
        label: What they are of, for the progress.
        batch_size: Images drawn together.

    Returns:
        Shape ``(N, 3, H, W)``, in [0, 1], rounded to 8 bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.png" for number in range(len(pictures))]
    # Always the same batches: rounding depends on what is drawn together.
    batches = [range(start, min(start + batch_size, len(files))) for start in range(0, len(files), batch_size)]
    for batch in progress(batches, label):
        if all(files[i].is_file() for i in batch):
            continue
        prompts, seeds = [pictures[i].prompt for i in batch], [pictures[i].seed for i in batch]
        images = module.generate(prompts, seeds, batch_size=len(batch))
        for i, image in zip(batch, images, strict=True):
            _write(image, files[i])
    return torch.stack([_read(file) for file in files])


def thumbnail(image: Tensor) -> Tensor:
    """An image as a page shows it: at most 160 pixels wide and high."""
    scale = _SIDE / max(image.shape[-2:])
    if scale >= 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image[None], size=size, mode="area")[0]


def _write(image: Tensor, file: Path) -> None:
    from PIL import Image

    values = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    with replacing(file) as part:
        Image.fromarray(values).save(part, "PNG")


def _read(file: Path) -> Tensor:
    import numpy
    from PIL import Image

    with Image.open(file) as opened:
        values = numpy.array(opened.convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255
