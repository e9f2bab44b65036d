"""Miniature of UnlearnCanvas: drawings of five objects in six styles, their captions, and a pipeline."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from lightning_unlearn.core.checks import at_least, one_of

__all__ = ["FILLERS", "OBJECTS", "STYLES", "MiniCanvas", "captions", "miniature_pipeline", "prompt", "render", "shape"]

OBJECTS = {
    "disk": ("disk", "ball", "coin"),
    "box": ("box", "square", "crate"),
    "wedge": ("wedge", "triangle", "cone"),
    "cross": ("cross", "plus", "sword"),
    "ring": ("ring", "donut", "hoop"),
}
"""The objects, and the words that captions call each by; the first is the most frequent one."""

STYLES = {
    "photo": ("photo", "plain", "camera"),
    "stripes": ("stripes", "lined", "zebra"),
    "negative": ("negative", "inverted", "xray"),
    "mosaic": ("mosaic", "pixel", "tiles"),
    "ember": ("ember", "fire", "lava"),
    "sketch": ("sketch", "pencil", "outline"),
}
"""The styles, and the words that captions call each by; ``photo`` is the image before any style."""

_WORDS = (
    "the one some this that with on near very small big old new nice my your his her our and or of at by to from just "
    "only here there now then day night sun moon tree road house sea sky wind soft warm cold quiet seen made found "
    "left right today again much more less good fine true rare calm free slow tall long deep wide each few many first "
    "last north south east west air hill lake song door"
)
FILLERS = tuple(_WORDS.split())
"""Words without information about an image."""


def render(object: str, style: str, index: int, size: int = 32) -> Tensor:
    """Draw an object in a style.

    The index chooses place, radius and colours. Images of one object and index in two styles are a pair: a style
    changes colour and texture and leaves place and shape.

    Args:
        object: One of `OBJECTS`.
        style: One of `STYLES`.
        index: Number of the image of the object, at least 0; the same index always gives the same image.
        size: Side in pixels, a multiple of 8.

    Returns:
        Colours in [0, 1], shape ``(3, size, size)``.

    Raises:
        ValueError: If there is no such object or style, or ``index`` or ``size`` is out of range.

    Example:
        >>> photo, negative = render("ring", "photo", 0), render("ring", "negative", 0)
        >>> photo.shape, torch.allclose(photo, 1 - negative)
        (torch.Size([3, 32, 32]), True)
    """
    _check(object, style)
    at_least("index", index, 0)
    if at_least("size", size, 8) % 8:
        raise ValueError(f"size must be a multiple of 8, but got {size}.")
    return _DRAWN[style](_photo(object, index, size))


def prompt(object: str, style: str) -> str:
    """The caption in UnlearnCanvas's form.

    Example:
        >>> prompt("disk", "sketch")
        'a disk image in sketch style'
    """
    _check(object, style)
    return f"a {object} image in {style} style"


def captions(
    object: str | None, style: str | None, count: int = 1, seed: int | random.Random = 0, heldout: bool = False
) -> list[str]:
    """Free descriptions of an image: one name for each concept, filler words, and often the words in random order.

    A third of them have the form of `prompt` after the fillers. With fixed forms only, an adversarial prefix would have
    nothing to imitate, and erased concepts would not come back.

    Args:
        object: One of `OBJECTS`, or ``None`` for captions that name no object.
        style: One of `STYLES`, or ``None`` for captions that name no style.
        count: Number of captions.
        seed: Seed, or a generator to draw from.
        heldout: Whether to give held-out captions, which a model trained on the others never saw: every tenth, by a
            checksum of the text.

    Raises:
        ValueError: If there is no such object or style, or neither is given.

    Example:
        >>> captions("ring", "ember", count=2)
        ['east then lake ember ring this sea north', 'lava few quiet ring a with just']
    """
    if object is None and style is None:
        raise ValueError("A caption names an object or a style: give object, style or both.")
    _check(object or "disk", style or "photo")
    generator = seed if isinstance(seed, random.Random) else random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        text = _caption(object, style, generator)
        if (zlib.crc32(text.encode()) % 10 == 0) == heldout:
            texts.append(text)
    return texts


class MiniCanvas(Dataset[dict[str, Any]]):
    """Captioned images of every object in every style.

    A row has ``image`` ``(3, size, size)`` in [0, 1], ``caption``, the numbers of its ``object`` and ``style``, and
    the ``index`` it was rendered with. Rows are drawn when the dataset is made.

    Args:
        images: Images of an object in a style.
        first: Index of the first of them; ranges that do not overlap have no image in common.
        objects: Names from `OBJECTS`; ``None``: all.
        styles: Names from `STYLES`; ``None``: all.
        size: Side in pixels, a multiple of 8.
        seed: Seed of the captions.
        heldout: Whether the captions are held-out ones, which a model must not have been trained on.

    Raises:
        ValueError: If there is no such object or style, ``images`` is not positive, or ``first`` or ``size`` is out of
            range.

    Example:
        >>> rows = MiniCanvas(images=2, objects=["disk", "box"])
        >>> len(rows), rows[0]["image"].shape, rows[-1]["object"], rows[-1]["style"]
        (24, torch.Size([3, 32, 32]), 1, 5)

    References:
        Zhang et al., "UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
        Models", 2024, arXiv:2402.11846.
    """

    def __init__(
        self,
        images: int = 20,
        first: int = 0,
        objects: list[str] | None = None,
        styles: list[str] | None = None,
        size: int = 32,
        seed: int = 0,
        heldout: bool = False,
    ) -> None:
        at_least("images", images, 1)
        generator = random.Random(seed)
        self.rows = [
            {
                "image": render(object, style, index, size),
                "caption": captions(object, style, 1, generator, heldout)[0],
                "object": list(OBJECTS).index(object),
                "style": list(STYLES).index(style),
                "index": index,
            }
            for object in (OBJECTS if objects is None else objects)
            for index in range(first, first + images)
            for style in (STYLES if styles is None else styles)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]


def miniature_pipeline() -> Path:
    """The folder of a small ``StableDiffusionPipeline`` that draws these images from these captions at 32 pixels.

    ``examples/miniature.py`` trains it. Use a guidance scale of about 4 and 20 steps.

    Example:
        >>> from diffusers import StableDiffusionPipeline
        >>> pipeline = StableDiffusionPipeline.from_pretrained(miniature_pipeline())
        >>> pipeline.tokenizer.tokenize("a zebra ring")
        ['a</w>', 'zebra</w>', 'ring</w>']
    """
    return Path(__file__).parents[2] / "assets" / "miniature"


def _check(object: str, style: str) -> None:
    one_of("object", object, OBJECTS)
    one_of("style", style, STYLES)


def _caption(object: str | None, style: str | None, generator: random.Random) -> str:
    def name(names: tuple[str, ...]) -> str:
        return names[0] if generator.random() < 0.4 else generator.choice(names)

    fillers = generator.choices(FILLERS, k=generator.choice((0, 0, 1, 2, 3, 4, 6)))
    if generator.random() < 0.35:
        what = f"a {name(OBJECTS[object])} image" if object else "an image"
        how = f"in {name(STYLES[style])} style" if style else ""
        return " ".join([*fillers, *what.split(), *how.split()])
    words = fillers + ["a"] * (generator.random() < 0.5)
    for names in (OBJECTS[object] if object else (), STYLES[style] if style else ()):
        if names:
            words += [name(names) for _ in range(1 + (generator.random() < 0.25))]
    generator.shuffle(words)
    return " ".join(words)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """The x and the y of pixel centres, from -1 (left, top) to 1."""
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    return line.repeat(size, 1), line.repeat(size, 1).T


def _photo(object: str, index: int, size: int) -> Tensor:
    """A dark object on a light ground. Edges are smooth: a pixel is the mean of 16 points."""
    generator = torch.Generator().manual_seed(100_003 * list(OBJECTS).index(object) + index)

    def uniform(low: float, high: float, count: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    (dx, dy), radius = uniform(-0.16, 0.16, 2), uniform(0.54, 0.72)
    ground = torch.tensor([0.85, 0.9, 0.8]) + uniform(-0.05, 0.05, 3)
    colour = torch.tensor([0.2, 0.25, 0.6]) + uniform(-0.1, 0.1, 3)
    x, y = _grid(4 * size)
    inside = _SHAPES[object]((x - dx) / radius, (y - dy) / radius).float()
    mask = F.avg_pool2d(inside[None], 4)
    return mask * colour[:, None, None] + (1 - mask) * ground[:, None, None]


_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disk": lambda x, y: x**2 + y**2 <= 1,
    "box": lambda x, y: torch.maximum(x.abs(), y.abs()) <= 0.9,
    "wedge": lambda x, y: (y <= 0.8) & (x.abs() <= (y + 1) / 1.8),
    "cross": lambda x, y: (torch.minimum(x.abs(), y.abs()) <= 0.36) & (torch.maximum(x.abs(), y.abs()) <= 1),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3),
}


def shape(object: str, size: int = 512) -> Tensor:
    """Mask of an object's shape at its full size, in the middle.

    Args:
        object: One of `OBJECTS`.
        size: Side in pixels; the mask reaches from -1 to 1, so that a disk touches its edges.

    Returns:
        Boolean, shape ``(size, size)``.

    Raises:
        ValueError: If there is no such object, or ``size`` is not positive.

    Example:
        >>> round(4 * shape("box", 1000).double().mean().item(), 2)
        3.24
    """
    one_of("object", object, OBJECTS)
    return _SHAPES[object](*_grid(at_least("size", size, 1)))


def _stripes(photo: Tensor) -> Tensor:
    x, y = _grid(photo.shape[-1])
    return 0.7 * photo + 0.3 * (torch.sin(14 * (x + y)) > 0)


def _mosaic(photo: Tensor) -> Tensor:
    block = photo.shape[-1] // 8
    return F.avg_pool2d(photo, block).repeat_interleave(block, 1).repeat_interleave(block, 2)


def _ember(photo: Tensor) -> Tensor:
    light = photo.mean(0)
    return torch.stack([0.2 + 0.8 * light, 0.1 + 0.4 * light**2, torch.full_like(light, 0.05)])


def _sketch(photo: Tensor) -> Tensor:
    light = F.pad(photo.mean(0, keepdim=True), (1, 0, 1, 0), mode="replicate")
    steps = (light[:, 1:, 1:] - light[:, 1:, :-1]).abs() + (light[:, 1:, 1:] - light[:, :-1, 1:]).abs()
    return (1 - 3 * steps).clamp(min=0).repeat(3, 1, 1)


_DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "photo": lambda photo: photo,
    "stripes": _stripes,
    "negative": lambda photo: 1 - photo,
    "mosaic": _mosaic,
    "ember": _ember,
    "sketch": _sketch,
}
