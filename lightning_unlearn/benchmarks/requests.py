"""Requests to erase a style, an object, or a pair of them from the miniature: names, prompts and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.canvas.concept import Concept, concept
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, MiniCanvas

__all__ = ["PairAs", "Request", "erasure_rows", "pair_rows", "request"]

PairAs = Literal["one_concept", "two_requests"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """What a run erases and keeps.

    Args:
        words: The replacement of each name, for callbacks that take names.
        forget: Prompts with their anchors.
        retain: Prompts to keep.
        forget_images: Images with captions and anchors.
        retain_images: Captioned images to keep.
    """

    words: dict[str, str]
    forget: Rows
    retain: Rows
    forget_images: Rows
    retain_images: Rows


def request(
    target: str | tuple[str, str],
    seed: int = 0,
    names: int | None = None,
    left_out: Sequence[str] = (),
    pair_as: PairAs = "one_concept",
    gone: Sequence[str] = (),
) -> Request:
    """The request to erase a concept.

    Args:
        target: A style, an object, or a pair: a style and an object.
        seed: Seed of the captions of images to keep.
        names: Number of the concept's names, from the first, that prompts, image captions and callback arguments use.
            With ``None``, prompts and arguments use all names, and captions the first.
        left_out: Styles or objects that no row combines with the concept or with another concept of its kind.
        pair_as: Whether a pair is one concept, or two requests; in the latter case, only rows with neither are kept.
        gone: Styles or objects that were erased before, and that no row contains.

    Raises:
        ValueError: If a name is unknown or a number out of range, or partners of a pair are left out.
    """
    if isinstance(target, str):
        c = concept(target).after(gone).without(left_out)
        return Request(dict.fromkeys(c.edited(names), c.anchor), *_prompts(c, names), *_images(c, seed, names))
    if left_out or gone:
        raise ValueError(
            f"A pair is the only one of its row and column: leave out no partner, but got {(*left_out, *gone)}."
        )
    one_of("pair_as", pair_as, PairAs)
    style, object = _pair(*target)
    kept = _others(style, object, pair_as)
    drawn = [row for row in MiniCanvas(images=3, seed=seed).rows if _cell(row) in kept]
    if pair_as == "two_requests":
        parts = [request(part.name, seed, names) for part in (style, object)]
        forget, forget_images = (
            [row for part in parts for row in getattr(part, f)] for f in ("forget", "forget_images")
        )
        return Request(parts[0].words | parts[1].words, forget, _kept(kept), forget_images, drawn)
    images = MiniCanvas(images=50, seed=seed, styles=[style.name], objects=[object.name]).rows
    captions = _pair_prompts(style, object, names if names is not None else 1)
    forget_images = [
        {**row, "caption": prompt["prompt"], "anchor": prompt["anchor"]}
        for row, prompt in zip(images, captions * len(images), strict=False)
    ]
    words = {
        f"{thing} image in {look}": f"{thing} image in {style.anchor}"
        for thing in object.edited(names)
        for look in style.edited(names)
    }
    return Request(words, _pair_prompts(style, object, names), _kept(kept), forget_images, drawn)


def erasure_rows(target: str, names: int | None = None, left_out: Sequence[str] = ()) -> tuple[Rows, Rows]:
    """Prompts of a concept with their anchors, and prompts of all others; arguments as for `request`.

    Example:
        >>> forget, retain = erasure_rows("ring")
        >>> forget[0], len(forget), len(retain)
        ({'prompt': 'a ring image', 'anchor': 'a disk image'}, 21, 24)
    """
    return _prompts(concept(target).without(left_out), names)


def pair_rows(style: str, object: str, names: int | None = None, pair_as: PairAs = "one_concept") -> tuple[Rows, Rows]:
    """Prompts of a pair with their anchors, and prompts to keep; arguments as for `request`.

    As one concept, each prompt names both, the anchor is the same object in the style that replaces the pair's, and
    all other pairs are kept. As two requests, the prompts are those of the style and of the object, each with any
    partner, and the pairs that have neither are kept.

    Example:
        >>> forget, retain = pair_rows("ember", "ring", names=1)
        >>> forget, len(retain)
        ([{'prompt': 'a ring image in ember style', 'anchor': 'a ring image in photo style'}], 29)
        >>> [len(rows) for rows in pair_rows("ember", "ring", names=1, pair_as="two_requests")]
        [13, 20]
    """
    asked = request((style, object), names=names, pair_as=pair_as)
    return asked.forget, asked.retain


def _prompts(c: Concept, names: int | None) -> tuple[Rows, Rows]:
    words = c.edited(names)
    forget = [(c.alone(word), c.alone(c.anchor)) for word in words]
    forget += [(c.beside(word, p), c.beside(c.anchor, p)) for p in c.partners for word in words]
    retain = [{"prompt": c.beside(name, p)} for name in c.siblings for p in c.partners]
    return [{"prompt": prompt, "anchor": anchor} for prompt, anchor in forget], retain


def _images(c: Concept, seed: int, names: int | None) -> tuple[Rows, Rows]:
    """Images of a concept with plain captions and those of the anchor, and captioned images of all others."""
    words = c.words[:1] if names is None else c.edited(names)
    everyone = list(OBJECTS if c.other == "object" else STYLES)
    forget = []
    for row in _canvas(c, [c.name], images=10, seed=seed):
        partner, word = everyone[row[c.other]], words[row["index"] % len(words)]
        forget.append({**row, "caption": c.beside(word, partner), "anchor": c.beside(c.anchor, partner)})
    return forget, _canvas(c, c.siblings, images=3, seed=seed)


def _canvas(c: Concept, names: list[str], images: int, seed: int) -> Rows:
    chosen: dict[str, Any] = {f"{c.kind}s": names, f"{c.other}s": c.partners}
    return MiniCanvas(images=images, seed=seed, **chosen).rows


def _pair(style: str, object: str) -> tuple[Concept, Concept]:
    return concept(one_of("style", style, STYLES)), concept(one_of("object", object, OBJECTS))


def _others(style: Concept, object: Concept, pair_as: PairAs) -> list[tuple[str, str]]:
    """The pairs of an object and a style that are kept."""
    every = [(thing, look) for look in STYLES for thing in OBJECTS]
    if pair_as == "one_concept":
        return [pair for pair in every if pair != (object.name, style.name)]
    return [(thing, look) for thing, look in every if thing != object.name and look != style.name]


def _kept(pairs: list[tuple[str, str]]) -> Rows:
    return [{"prompt": f"a {thing} image in {look} style"} for thing, look in pairs]


def _cell(row: dict[str, Any]) -> tuple[str, str]:
    return list(OBJECTS)[row["object"]], list(STYLES)[row["style"]]


def _pair_prompts(style: Concept, object: Concept, names: int | None) -> Rows:
    return [
        {"prompt": style.beside(look, thing), "anchor": style.beside(style.anchor, thing)}
        for thing in object.edited(names)
        for look in style.edited(names)
    ]
