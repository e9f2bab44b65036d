"""Features of canvas images, and the distances of answer sets from the data and from the base model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.files import replacing
from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.metrics.fid import FID, KID

__all__ = ["Image", "ImageFeatures", "fid_retain", "fid_vs_base", "kid_retain"]

Image: TypeAlias = tuple[str, str, int]
"""Style, object, and seed or number of an image."""

_LISTED = 5


@dataclass(frozen=True)
class ImageFeatures:
    """Features of the images of a style-object grid.

    Args:
        names: The styles and objects.
        images: Style, object, and seed or number of each of ``N`` images.
        values: Features, shape ``(N, D)``, fp32.
        source: Identifies what computed them. Distances are only computed between features of one source.

    Raises:
        ValueError: If there are not as many features as images, or an image occurs twice.
    """

    names: CanvasNames
    images: tuple[Image, ...]
    values: Tensor
    source: str

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.images):
            raise ValueError(
                f"Features of {len(self.images)} images have the shape ({len(self.images)}, D), but got "
                f"{tuple(self.values.shape)}."
            )
        if len(set(self.images)) < len(self.images):
            raise ValueError("The features of an image are there twice.")

    def of(self, images: Collection[Image]) -> ImageFeatures:
        """Those of some images."""
        wanted = set(images)
        places = [place for place, image in enumerate(self.images) if image in wanted]
        return ImageFeatures(self.names, tuple(self.images[i] for i in places), self.values[places], self.source)

    def retained(self, targets: str | Sequence[str], photo: bool = False) -> ImageFeatures:
        """Those of images that neither have a target's style nor show a target's object.

        Args:
            targets: Names of styles and objects, or one of them; none for all images.
            photo: Whether the photos are among them.

        Raises:
            ValueError: If there is no such style or object, or a pair of the others has no image.
        """
        removed = [targets] if isinstance(targets, str) else list(targets)
        for target in removed:
            one_of("target", target, (*self.names.styles, *self.names.objects))
        pairs = [pair for pair in self.names.pairs(photo) if not set(pair) & set(removed)]
        there = {image[:2] for image in self.images}
        if lacking := [f"{style} {object}" for style, object in pairs if (style, object) not in there]:
            raise ValueError(
                f"{len(lacking)} of {len(pairs)} pairs of a style and an object have no image: "
                f"{', '.join(lacking[:_LISTED])}{' ...' if len(lacking) > _LISTED else ''}. Distances of incomplete "
                "sets do not compare."
            )
        kept = set(pairs)
        return self.of({image for image in self.images if image[:2] in kept})

    def write(self, path: str | Path) -> None:
        """Write them as safetensors."""
        from safetensors.torch import save_file

        grid = (self.names.all_styles, self.names.objects)
        style, object = (torch.tensor([n.index(image[i]) for image in self.images]) for i, n in enumerate(grid))
        number = torch.tensor([image[2] for image in self.images])
        columns = {"style": style.long(), "object": object.long(), "number": number.long()}
        about = {"source": self.source, "styles": json.dumps(grid[0]), "objects": json.dumps(grid[1])}
        with replacing(path) as file:
            save_file({**columns, "values": self.values.float().contiguous()}, file, about)

    @classmethod
    def read(cls, path: str | Path, names: CanvasNames) -> ImageFeatures:
        """Read what `write` wrote.

        Raises:
            ValueError: If they are of other styles and objects.
        """
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = file.metadata()
            style, object, number, values = (file.get_tensor(key) for key in ("style", "object", "number", "values"))
        grid = (tuple(json.loads(about["styles"])), tuple(json.loads(about["objects"])))
        if grid != (names.all_styles, names.objects):
            raise ValueError(f"{path} has features of other styles and objects than the names.")
        rows = zip(style.tolist(), object.tolist(), number.tolist(), strict=True)
        return cls(names, tuple((grid[0][s], grid[1][o], n) for s, o, n in rows), values, about["source"])

    @classmethod
    def joined(cls, names: CanvasNames, source: str, parts: Iterable[tuple[Sequence[Image], Tensor]]) -> ImageFeatures:
        """Those of images and their values, part by part."""
        listed = list(parts)
        values = torch.cat([values for _, values in listed]) if listed else torch.empty(0, 0)
        return cls(names, tuple(image for images, _ in listed for image in images), values, source)


def fid_retain(
    answers: ImageFeatures, reference: ImageFeatures, targets: str | Sequence[str] = (), photo: bool = False
) -> float:
    """FID of an answer set to reference images, without the targets' styles and objects on either side.

    The published one takes the images 1 to 5 of each style and object of the data set as the reference, and
    [`InceptionFeatures`][lightning_unlearn.InceptionFeatures]. With one target style that is 4,900 images on either
    side. FID is biased, and the more so the fewer images there are, so compare it at equal numbers only.

    Args:
        answers: Features of the answer set.
        reference: Features of the reference, of the same source.
        targets: What was unlearned: names of styles and objects, or one of them; none for the FID of all images.
        photo: Whether the photos count. The released script lists them among the styles.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: If the features are of different sources, a target is unknown, or a set lacks a pair of a style and
            an object.
    """
    fid = FID(_identity(answers.values.shape[1]))
    for features, real in zip(_both(answers, reference, targets, photo), (False, True), strict=True):
        fid.update(features.values, real=real)
    return float(fid.compute())


def kid_retain(
    answers: ImageFeatures,
    reference: ImageFeatures,
    targets: str | Sequence[str] = (),
    photo: bool = False,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """KID of an answer set to reference images, without the targets' styles and objects on either side.

    It is unbiased, so use it for sets that are small compared with the number of features.

    Args:
        answers: As for [`fid_retain`][lightning_unlearn.fid_retain].
        reference: As there.
        targets: As there.
        photo: As there.
        subsets: Number of subsets.
        subset_size: Images of a subset, at most those of the smaller set.
        seed: Seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: As there, or if a set has fewer images than a subset.
    """
    kid = KID(_identity(answers.values.shape[1]), subsets, subset_size, seed=seed)
    for features, real in zip(_both(answers, reference, targets, photo), (False, True), strict=True):
        kid.update(features.values, real=real)
    mean, deviation = kid.compute()
    return float(mean), float(deviation)


def fid_vs_base(
    answers: ImageFeatures, base: ImageFeatures, targets: str | Sequence[str] = (), photo: bool = False
) -> float:
    """FID of an answer set to that of the base model, with the same prompts and seeds, without the targets.

    It measures what unlearning changed in images that it should leave alone: 0 for a model that draws them as before.

    Args:
        answers: Features of the answer set.
        base: Features of the base model's answers, of the same source.
        targets: As for [`fid_retain`][lightning_unlearn.fid_retain].
        photo: As there.

    Raises:
        ValueError: As there, or if the sets have different images.
    """
    kept, of_base = _both(answers, base, targets, photo)
    if different := sorted(set(kept.images) ^ set(of_base.images)):
        listed = ", ".join(answers.names.file_name(*image, "") for image in different[:_LISTED])
        raise ValueError(f"{len(different)} images are in one of the two sets only: {listed}. Draw the same of both.")
    return fid_retain(answers, base, targets, photo)


def _both(
    answers: ImageFeatures, reference: ImageFeatures, targets: str | Sequence[str], photo: bool
) -> tuple[ImageFeatures, ImageFeatures]:
    if answers.source != reference.source:
        raise ValueError(
            f"Distances are of features of one source, but these are of {answers.source!r} and {reference.source!r}."
        )
    return answers.retained(targets, photo), reference.retained(targets, photo)


def _identity(features: int) -> nn.Identity:
    """Passes features on to a metric of images."""
    module = nn.Identity()
    module.num_features = features  # type: ignore[assignment]
    return module
