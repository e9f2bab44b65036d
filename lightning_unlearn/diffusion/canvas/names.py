"""Names, prompts and file names of a style-object benchmark: those of UnlearnCanvas and of its miniature."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES

__all__ = ["ANSWER_SEEDS", "MINI_CANVAS", "UNLEARN_CANVAS", "CanvasNames", "Kind", "names_of"]

Kind = Literal["style", "object"]

ANSWER_SEEDS = (188, 288, 588, 688, 888)
"""Seeds of the published answer sets."""

_STYLES = (
    "Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon "
    "Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love "
    "Greenfield Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic "
    "Neon_Lines On_Fire Pastel Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Sketch Sponge_Dabbed Structuralism "
    "Superstring Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter "
)
_OBJECTS = (
    "Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits "
    "Sandwiches Sea Statues Towers Trees Waterfalls "
)


@dataclass(frozen=True)
class CanvasNames:
    """The styles and objects of a benchmark, and how prompts and files are named.

    Names have underscores for spaces, as folders and files have; prompts have spaces.

    Args:
        styles: The styles that are evaluated, without the photos. All arrays have this order.
        objects: The objects. All arrays have this order.
        photo: Name of the pseudo-style of unstyled images, in folders and file names; ``None`` if there is none.
        photo_word: Word for this pseudo-style in prompts.
        template: Prompt with ``{object}`` and ``{style}``, used for training, unlearning and evaluation alike.

    Raises:
        ValueError: If a name occurs twice or the template lacks a placeholder.

    Example:
        >>> UNLEARN_CANVAS.prompt("Cold_Warm", "Cats")
        'A Cats image in Cold Warm style.'
        >>> UNLEARN_CANVAS.parse("Red_Blue_Ink_Sea_seed888.jpg")
        ('Red_Blue_Ink', 'Sea', 888)
    """

    styles: tuple[str, ...]
    objects: tuple[str, ...]
    photo: str | None = "Seed_Images"
    photo_word: str = "Photo"
    template: str = "A {object} image in {style} style."

    def __post_init__(self) -> None:
        names = [*self.all_styles, *self.objects]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"Each style and object needs a name of its own, but {twice} occur twice.")
        if not self.styles or not self.objects:
            raise ValueError("A benchmark needs a style and an object at least.")
        if "{object}" not in self.template or "{style}" not in self.template:
            raise ValueError(f"The template needs {{object}} and {{style}}, but is {self.template!r}.")

    @property
    def all_styles(self) -> tuple[str, ...]:
        """The styles, and the photos last."""
        return self.styles if self.photo is None else (*self.styles, self.photo)

    def of(self, kind: Kind) -> tuple[str, ...]:
        """The evaluated names of a kind."""
        return self.styles if one_of("kind", kind, Kind) == "style" else self.objects

    def kind(self, name: str) -> Kind:
        """Whether a name is that of a style or of an object.

        Raises:
            ValueError: If it is neither.
        """
        one_of("target", name, (*self.styles, *self.objects))
        return "style" if name in self.styles else "object"

    def word(self, name: str) -> str:
        """What prompts call a style or an object."""
        return self.photo_word if name == self.photo else name.replace("_", " ")

    def prompt(self, style: str, object: str) -> str:
        """The prompt of a style and an object."""
        return self.template.format(style=self.word(style), object=self.word(object))

    def pairs(self, photo: bool = False) -> Iterator[tuple[str, str]]:
        """All pairs of a style and an object, style by style.

        Args:
            photo: Whether the photos are among the styles.
        """
        for style in self.all_styles if photo else self.styles:
            for object in self.objects:
                yield style, object

    def file_name(self, style: str, object: str, seed: int, suffix: str = ".jpg") -> str:
        """Name of an image in an answer set, ``<style>_<object>_seed<seed>.jpg``."""
        return f"{style}_{object}_seed{seed}{suffix}"

    def parse(self, file: str | Path) -> tuple[str, str, int]:
        """The style, the object and the seed that a file name of an answer set tells; names may have underscores.

        Raises:
            ValueError: If it is not the name of such an image.
        """
        stem = Path(file).stem
        found = re.fullmatch(r"(.+)_seed_?(\d+)", stem)
        for style in sorted(self.all_styles, key=len, reverse=True) if found else ():
            object = found[1][len(style) + 1 :]  # type: ignore[index]
            if found[1].startswith(f"{style}_") and object in self.objects:  # type: ignore[index]
                return style, object, int(found[2])  # type: ignore[index]
        raise ValueError(
            f"{Path(file).name!r} is not named as an image of an answer set, <style>_<object>_seed<number>, with a "
            f"known style and object. Styles begin {_first(self.all_styles)}, objects {_first(self.objects)}."
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


UNLEARN_CANVAS = CanvasNames(
    tuple(_STYLES.split()),
    tuple(_OBJECTS.split()),
)
"""The 50 styles and 20 objects of the published study, in its order.

References:
    Zhang et al., *UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
    Models*, arXiv:2402.11846.
"""

MINI_CANVAS = CanvasNames(
    tuple(name for name in STYLES if name != "photo"),
    tuple(OBJECTS),
    photo="photo",
    photo_word="photo",
    template="a {object} image in {style} style",
)
"""Those of the miniature that the package ships."""


def names_of(benchmark: CanvasNames | str) -> CanvasNames:
    """The names of a benchmark: ``"unlearncanvas"`` or ``"mini"``, or names as they are.

    Raises:
        ValueError: If nothing has that name.

    Example:
        >>> names_of("mini") is MINI_CANVAS
        True
    """
    if isinstance(benchmark, CanvasNames):
        return benchmark
    known = {"unlearncanvas": UNLEARN_CANVAS, "mini": MINI_CANVAS}
    return known[one_of("names", benchmark, tuple(known), "Names of your own are CanvasNames(styles, objects).")]
