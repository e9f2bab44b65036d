"""Synthetic datasets: images with classes in super-classes, and texts with topics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.classification.data.arrays import LabelledRows, Part
from lightning_unlearn.core.checks import one_of

__all__ = ["SyntheticImages", "SyntheticText"]


class SyntheticImages(LabelledRows):
    """Colour images in CIFAR's format: smooth patterns of the class and super-class, added and shifted, with noise.

    Args:
        part: ``"train"`` or ``"test"``, two sets of rows with the same patterns.
        rows: Number of rows.
        classes: Number of classes, evenly spread over the super-classes.
        superclasses: Number of super-classes.
        size: Side in pixels.
        noise: Standard deviation of the pixel noise; that of a pattern is about 1.
        shift: Largest shift of a pattern in pixels.
        coarse: Whether labels are the super-classes; the classes then become the groups.
        seed: Seed of patterns and rows.

    Example:
        >>> rows = SyntheticImages(rows=20, size=8)
        >>> rows[0][0].shape, rows.targets.bincount().tolist()
        (torch.Size([3, 8, 8]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        part: Part = "train",
        rows: int = 2000,
        classes: int = 10,
        superclasses: int = 5,
        size: int = 32,
        noise: float = 3.0,
        shift: int = 4,
        coarse: bool = False,
        seed: int = 0,
    ) -> None:
        fine, parents, generator = _labels(part, rows, classes, superclasses, seed)
        shared = _patterns(superclasses, size, torch.Generator().manual_seed(2 * seed))
        own = _patterns(classes, size, torch.Generator().manual_seed(2 * seed + 1))
        images = ((shared[parents] + own) / 2**0.5)[fine]
        moves = torch.randint(-shift, shift + 1, (rows, 2), generator=generator).tolist()
        images = torch.stack([image.roll(move, (1, 2)) for image, move in zip(images, moves, strict=True)])
        contrast = 0.7 + 0.6 * torch.rand(rows, 1, 1, 1, generator=generator)
        images = contrast * images + noise * torch.randn(images.shape, generator=generator)
        super().__init__(images, *((parents[fine], fine) if coarse else (fine,)))


class SyntheticText(LabelledRows):
    """Token sequences with words that are typical of their class and super-class, from a common vocabulary.

    A token comes from the topic with probability ``signal``, from the words of its class and its super-class half each,
    and otherwise from all words, whose frequencies follow Zipf's law.

    Args:
        part: ``"train"`` or ``"test"``, two sets of rows with the same topics.
        rows: Number of rows.
        classes: Number of classes, evenly spread over the super-classes.
        superclasses: Number of super-classes.
        vocabulary: Number of token ids.
        length: Tokens per row.
        signal: Share of tokens from the words of the class or super-class.
        coarse: Whether labels are the super-classes; the classes then become the groups.
        seed: Seed of topics and rows.

    Example:
        >>> SyntheticText(rows=8, classes=4, superclasses=2, length=6).inputs.shape
        torch.Size([8, 6])
    """

    def __init__(
        self,
        part: Part = "train",
        rows: int = 2000,
        classes: int = 20,
        superclasses: int = 5,
        vocabulary: int = 2000,
        length: int = 32,
        signal: float = 0.3,
        coarse: bool = False,
        seed: int = 0,
    ) -> None:
        fine, parents, generator = _labels(part, rows, classes, superclasses, seed)
        common = 1 / torch.arange(1.0, vocabulary + 1)
        topics = torch.Generator().manual_seed(seed)

        def words(count: int) -> Tensor:
            """A distribution over a twentieth of the vocabulary for each topic."""
            own = torch.rand(count, vocabulary, generator=topics) < 0.05
            return F.normalize(own * torch.rand(count, vocabulary, generator=topics), p=1, dim=1)

        topic = (words(superclasses)[parents] + words(classes)) / 2
        tokens = signal * topic + (1 - signal) * common / common.sum()
        inputs = torch.multinomial(tokens[fine], length, replacement=True, generator=generator)
        super().__init__(inputs, *((parents[fine], fine) if coarse else (fine,)))


def _labels(
    part: Part, rows: int, classes: int, superclasses: int, seed: int
) -> tuple[Tensor, Tensor, torch.Generator]:
    """Shuffled labels, balanced over classes; the super-class of each class; and the random generator of the part."""
    one_of("part", part, Part)
    if classes % superclasses:
        raise ValueError(f"{classes} classes can't be spread evenly over {superclasses} super-classes.")
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + (part == "test"))
    fine = (torch.arange(rows) % classes)[torch.randperm(rows, generator=generator)]
    return fine, torch.arange(classes) // (classes // superclasses), generator


def _patterns(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth colour patterns, shape ``(count, 3, size, size)``."""
    return F.interpolate(torch.randn(count, 3, 8, 8, generator=generator), size, mode="bilinear", align_corners=False)
