"""Folder of images of every object in every style, in the layout of UnlearnCanvas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.diffusion.canvas.names import CanvasNames, names_of

__all__ = ["CanvasImage", "Split", "StyleObjectFolder", "split_numbers"]

Split = Literal["train", "val", "test", "all"]

_ENDINGS = (".jpg", ".jpeg", ".png")


class CanvasImage(NamedTuple):
    """An image of the folder.

    Args:
        path: Its file.
        style: Name of its style, or of the photos.
        object: Name of its object.
        number: Number from 1; images of an object with the same number are stylisations of the same photo.
    """

    path: Path
    style: str
    object: str
    number: int


class StyleObjectFolder:
    """Images ``<root>/<style>/<object>/<number>.jpg``, each object in each style, as UnlearnCanvas is distributed.

    Each pair of a style and an object has images with the numbers 1, 2, ..., and so do the photos, whose folder
    ``names`` defines (``Seed_Images``). Files may also end with ``.jpeg`` or ``.png``, and have letters before the
    number. They are ordered by style, object and number, with 10 after 9. Folders of other styles and objects, such as
    the ten styles that the published study leaves out, are not read.

    Args:
        root: The folder.
        names: The styles and objects; or ``"unlearncanvas"`` or ``"mini"``.
        images: Images of each pair, 20 in UnlearnCanvas; higher numbers are not read. The default is the highest
            number of any file.
        incomplete: Whether images may be missing, which a warning then lists.

    Raises:
        FileNotFoundError: If the folder does not exist, or images are missing.
        ValueError: If an image's name has no number, or two images of a pair have the same one.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     from lightning_unlearn.diffusion.canvas.export import export_mini_canvas
        ...
        ...     folder = export_mini_canvas(f"{root}/mini", images=3)
        ...     [(i.style, i.object, i.number, i.path.name) for i in folder.items("test", objects=["ring"])][:2]
        [('stripes', 'ring', 3, '3.jpg'), ('negative', 'ring', 3, '3.jpg')]
    """

    def __init__(
        self,
        root: str | Path,
        names: CanvasNames | str = "unlearncanvas",
        images: int | None = None,
        incomplete: bool = False,
    ) -> None:
        self.root, self.names = Path(root), names_of(names)
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root}; looked in {Path.cwd()}.")
        pairs = {
            (style, object): _numbered(self.root / style / object) for style, object in self.names.pairs(photo=True)
        }
        highest = max((number for files in pairs.values() for number in files), default=0)
        if not highest:
            raise FileNotFoundError(
                f"{self.root} has no image of these styles and objects. They are expected as "
                f"{self.root}/<style>/<object>/<number>.jpg, such as "
                f"{self.root / self.names.styles[0] / self.names.objects[0] / '1.jpg'}."
            )
        self.images = highest if images is None else at_least("images", images, 1)
        self._paths = {
            (*pair, number): files[number]
            for pair, files in pairs.items()
            for number in range(1, self.images + 1)
            if number in files
        }
        self.holes: tuple[tuple[str, str, int], ...] = tuple(
            (*pair, number) for pair in pairs for number in range(1, self.images + 1) if number not in pairs[pair]
        )
        """Style, object and number of each image that is missing."""
        if self.holes:
            message = self._missing()
            if not incomplete:
                raise FileNotFoundError(f"{message} Add them, or pass incomplete=True to go on without.")
            rank_zero_warn(message)

    def __len__(self) -> int:
        """All images, the photos too."""
        return len(self._paths)

    def items(
        self,
        split: Split = "all",
        styles: Iterable[str] | None = None,
        objects: Iterable[str] | None = None,
        numbers: Iterable[int] | None = None,
    ) -> list[CanvasImage]:
        """The images of some styles, objects and numbers.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``, see `split_numbers`.
            styles: By default all styles and the photos.
            objects: By default all objects.
            numbers: By default all; 1 to 5 are the reference of the published FID, 1 to 3 the data to forget.

        Raises:
            ValueError: If there is no such style or object, or no image is left.
        """
        chosen_styles = self._known("style", styles, self.names.all_styles)
        chosen_objects = self._known("object", objects, self.names.objects)
        chosen = set(split_numbers(self.images, split)).intersection(
            range(1, self.images + 1) if numbers is None else numbers
        )
        found = [
            CanvasImage(path, *key)
            for key, path in self._paths.items()
            if key[0] in chosen_styles and key[1] in chosen_objects and key[2] in chosen
        ]
        if not found:
            raise ValueError(
                f"{self.root} has no image of these styles, objects and numbers: it has the numbers 1 to "
                f"{self.images}, but {sorted(chosen) or 'none'} of them were asked for."
            )
        return found

    def caption(self, image: CanvasImage) -> str:
        """The prompt of an image's style and object."""
        return self.names.prompt(image.style, image.object)

    @staticmethod
    def _known(kind: str, chosen: Iterable[str] | None, known: tuple[str, ...]) -> frozenset[str]:
        return frozenset(known if chosen is None else (one_of(kind, name, known) for name in chosen))

    def _missing(self) -> str:
        pairs = [
            (f"{style}/{object}", [number for _, _, number in holes])
            for (style, object), holes in groupby(self.holes, key=lambda hole: hole[:2])
        ]
        listed = [f"{pair} {'all' if len(n) == self.images else ', '.join(map(str, n))}" for pair, n in pairs[:10]]
        if len(pairs) > 10:
            listed.append(f"and images of {len(pairs) - 10} more pairs")
        return (
            f"{self.root} lacks {len(self.holes)} of {len(self.names.all_styles)} x {len(self.names.objects)} x "
            f"{self.images} images: {'; '.join(listed)}."
        )


def split_numbers(images: int, split: Split) -> range:
    """The numbers of a split, of images 1 to ``images`` of a pair.

    A twentieth of the images, but at least one, is for validation, and as many are for testing. They come after the
    training images: of 20 images, 1 to 18 are for training, 19 is for validation and 20 for testing.

    Raises:
        ValueError: If there are fewer than three images to split, or no such split.

    Example:
        >>> [split_numbers(20, split) for split in ("train", "val", "test", "all")]
        [range(1, 19), range(19, 20), range(20, 21), range(1, 21)]
    """
    if one_of("split", split, Split) == "all":
        return range(1, images + 1)
    at_least("images of each pair", images, 3, "A split into training, validation and test images needs three.")
    held = max(1, images // 20)
    first, after = {
        "train": (1, images - 2 * held),
        "val": (images - 2 * held + 1, images - held),
        "test": (images - held + 1, images),
    }[split]
    return range(first, after + 1)


def _numbered(folder: Path) -> dict[int, Path]:
    """The images of a pair by their numbers, of which there are none without the folder."""
    files: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(".") or path.suffix.lower() not in _ENDINGS:
            continue
        found = re.fullmatch(r"\D*(\d+)", path.stem)
        if found is None or int(found[1]) < 1:
            raise ValueError(f"{path} is not named by a number from 1, as {folder / '1.jpg'} is.")
        if (number := int(found[1])) in files:
            raise ValueError(f"{folder} has image {number} twice, as {files[number].name} and {path.name}. Remove one.")
        files[number] = path
    return files
