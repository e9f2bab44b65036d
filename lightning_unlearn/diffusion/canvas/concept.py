"""Concepts of the miniature: their names, what replaces them, and prompts that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_unlearn.core.checks import between, one_of
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES

__all__ = ["Concept", "concept"]


@dataclass(frozen=True)
class Concept:
    """A style or an object of the miniature.

    Args:
        kind: ``"style"`` or ``"object"``.
        other: The other kind.
        words: Its names; the first is the one in UnlearnCanvas's prompts.
        anchor: The concept that replaces it.
        siblings: The other concepts of its kind.
        partners: Concepts of the other kind that rows of a run name.
        left_out: Concepts of the other kind that no row of a run names.
    """

    kind: Kind
    other: Kind
    words: tuple[str, ...]
    anchor: str
    siblings: list[str]
    partners: list[str]
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.words[0]

    def alone(self, word: str) -> str:
        """The prompt that names only a concept of its kind."""
        return f"an image in {word} style" if self.kind == "style" else f"a {word} image"

    def beside(self, word: str, partner: str) -> str:
        """The prompt that names a concept of its kind and one of the other."""
        object, style = (partner, word) if self.kind == "style" else (word, partner)
        return f"a {object} image in {style} style"

    def pair(self, partner: str) -> tuple[str, str]:
        """Object and style of its images with a partner."""
        return (partner, self.name) if self.kind == "style" else (self.name, partner)

    def edited(self, names: int | None) -> tuple[str, ...]:
        """The names that a run erases: the first ``names`` of them, or all.

        Raises:
            ValueError: If it has fewer names.
        """
        return self.words if names is None else self.words[: between("names", names, 1, len(self.words))]

    def without(self, partners: Sequence[str]) -> Concept:
        """The same concept without some partners, which the rows of a run must then not name.

        Raises:
            ValueError: If one of them is not a partner, or none would be left.
        """
        for partner in partners:
            one_of("left_out", partner, self.partners)
        kept = [partner for partner in self.partners if partner not in partners]
        if not kept:
            raise ValueError(f"left_out has every {self.other}, but rows of a run need one: leave one of them.")
        return replace(self, partners=kept, left_out=(*self.left_out, *partners))

    def after(self, gone: Sequence[str]) -> Concept:
        """The same concept after others were erased: no row of a run names them, not even rows to keep.

        Raises:
            ValueError: If no partner would be left.
        """
        alone = replace(self, siblings=[name for name in self.siblings if name not in gone])
        return alone.without([name for name in gone if name in self.partners])


def concept(name: str) -> Concept:
    """The concept of a name; a style is replaced by ``photo`` (``photo`` by ``sketch``), an object by the next one.

    Raises:
        ValueError: If there is no such [style][lightning_unlearn.diffusion.data.miniature.STYLES] or
            [object][lightning_unlearn.diffusion.data.miniature.OBJECTS].
    """
    styles, objects = list(STYLES), list(OBJECTS)
    if one_of("target", name, [*styles, *objects]) in STYLES:
        anchor = "photo" if name != "photo" else "sketch"
        return Concept("style", "object", STYLES[name], anchor, [s for s in styles if s != name], objects)
    anchor = objects[(objects.index(name) + 1) % len(objects)]
    return Concept("object", "style", OBJECTS[name], anchor, [o for o in objects if o != name], styles)
