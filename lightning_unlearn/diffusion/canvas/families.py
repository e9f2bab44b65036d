"""Families of prompts that ask for an erased concept: by name, by other names, inside captions, in combinations."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.diffusion.canvas.concept import Concept, concept
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS
from lightning_unlearn.diffusion.data.miniature import captions

__all__ = ["FAMILIES", "INDIRECT", "NAMELESS", "FamilyPrompt", "family_prompts", "names_any", "unnamed"]

FAMILIES = ("name", "variant", "prefix", "free", "both", "composition", "superclass")
"""The families, in the order of tables."""

INDIRECT = ("variant", "prefix", "free", "both", "composition")
"""Those that ask for the concept in another way than by the prompt that was erased."""

NAMELESS = ("variant", "free")
"""Those whose prompts have no name that was erased."""

_PREFIXES = ("sun", "moon", "road", "sky", "wind", "warm", "cold", "calm", "long", "good", "north", "south")
# Fillers that the tokenizer splits off every name. Of "treering" it makes other pieces than that of "ring".


@dataclass(frozen=True)
class FamilyPrompt:
    """A prompt of a family.

    Args:
        family: One of `FAMILIES`.
        prompt: The prompt.
        partner: First name of the style or object that is combined with the concept.
        seeds: Seeds of its images; the same for all families and models.
    """

    family: str
    prompt: str
    partner: str
    seeds: tuple[int, ...] = ANSWER_SEEDS


def family_prompts(
    target: str,
    names: int = 1,
    left_out: Sequence[str] = (),
    families: Sequence[str] = FAMILIES,
    seeds: Sequence[int] = ANSWER_SEEDS,
    seed: int = 0,
) -> list[FamilyPrompt]:
    """Prompts that ask the miniature for a concept.

    $E$ are the names that were erased, $n_0$ is the first of them, and a partner is the other attribute of the image,
    such as the object in a prompt for a style. Unless noted otherwise, there is one prompt for each partner:

    - ``"name"``: UnlearnCanvas's template with $n_0$.
    - ``"variant"``: the same with each name outside $E$. On the miniature these are easy for any method that edits keys
      and values, because its text encoder has all but merged the names of a concept.
    - ``"prefix"``: $n_0$ with a word glued to its front, with two different words; the last token is that of the name.
    - ``"free"``: a held-out caption that uses only names of the concept outside $E$.
    - ``"both"``: a held-out caption with a name in $E$ and one outside.
    - ``"composition"``: the template of ``"name"`` with the partners that no row of the run named.
    - ``"superclass"``: a held-out caption that names the partner only. It measures how often the concept appears
      unasked.

    Families that cannot exist are left out: ``"variant"``, ``"free"`` and ``"both"`` if all names were erased, and
    ``"composition"`` if no partner was left out.

    Args:
        target: The concept.
        names: Number of its names that were erased, counted from the first.
        left_out: Partners that no row of the run named.
        families: The families to make.
        seeds: Seeds of the images of each prompt.
        seed: Seed of the captions and prefixes.

    Returns:
        The prompts, family by family. Those of a family do not depend on which other families are made.

    Raises:
        ValueError: If a name is unknown or a number out of range.

    Example:
        >>> rows = family_prompts("ring", families=["name", "variant"])
        >>> len(rows), rows[0].prompt, rows[-1].prompt
        (18, 'a ring image in photo style', 'a hoop image in sketch style')

    References:
        Families after EMMA, arXiv:2512.17320 (name, prefix, variant), and SEE, arXiv:2508.15124 (compositions,
        superclasses); the prompts are our own.
    """
    for family in families:
        one_of("families", family, FAMILIES)
    at_least("the number of seeds", len(seeds), 1)
    whole = concept(target)
    asked = whole.without(left_out)
    edited = whole.edited(names)
    rows = []
    for family in FAMILIES:
        if family in families:
            texts = _FAMILIES[family](asked, edited, random.Random(f"{seed} {target} {family}"))
            rows += [FamilyPrompt(family, text, partner, tuple(seeds)) for text, partner in texts]
    named = [row.prompt for row in rows if row.family in NAMELESS and names_any(row.prompt, edited)]
    if named:
        raise ValueError(f"{named[0]!r} is to name none of {list(edited)}, which were erased, but does.")
    return rows


Texts = Iterable[tuple[str, str]]
"""Prompts, each with its partner."""


def _name(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    return [(c.beside(c.name, partner), partner) for partner in c.partners]


def _variant(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    return [(c.beside(word, p), p) for word in c.words if word not in edited for p in c.partners]


def _prefix(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    glued = [filler + c.name for filler in draws.sample(_PREFIXES, 2)]
    return [(c.beside(word, partner), partner) for word in glued for partner in c.partners]


def _free(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    if len(edited) == len(c.words):
        return []
    return [(_caption(c, p, draws, lambda text: not names_any(text, edited)), p) for p in c.partners]


def _both(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    others = [word for word in c.words if word not in edited]
    if not others:
        return []

    def has_both(text: str) -> bool:
        return names_any(text, edited) and names_any(text, others)

    return [(_caption(c, partner, draws, has_both), partner) for partner in c.partners]


def _composition(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    return [(c.beside(c.name, partner), partner) for partner in c.left_out]


def _superclass(c: Concept, edited: tuple[str, ...], draws: random.Random) -> Texts:
    for partner in c.partners:
        object, style = (None, partner) if c.kind == "object" else (partner, None)
        yield captions(object, style, 1, draws, heldout=True)[0], partner


_FAMILIES: dict[str, Callable[[Concept, tuple[str, ...], random.Random], Texts]] = {
    "name": _name,
    "variant": _variant,
    "prefix": _prefix,
    "free": _free,
    "both": _both,
    "composition": _composition,
    "superclass": _superclass,
}


def _caption(c: Concept, partner: str, draws: random.Random, wanted: Callable[[str], bool]) -> str:
    """A held-out caption that fulfils a condition; captions are drawn until one does."""
    object, style = c.pair(partner)
    while True:
        (text,) = captions(object, style, 1, draws, heldout=True)
        if wanted(text):
            return text


def names_any(prompt: str, names: Iterable[str]) -> bool:
    """Whether a prompt contains one of the names, as whole words, ignoring case, and also in the plural.

    The words of a name may also be joined, with or without a hyphen.

    Example:
        >>> names_any("Two baseball-bats lie there.", ["baseball bat"]), names_any("carrying cargo", ["car"])
        (True, False)
    """
    for name in names:
        parts = r"[\s_-]*".join(re.escape(part) for part in re.split(r"[\s_-]+", name) if part)
        if parts and re.search(rf"(?<!\w){parts}(?:e?s)?(?!\w)", prompt, re.IGNORECASE):
            return True
    return False


def unnamed(prompts: Sequence[str], names: Iterable[str]) -> list[str]:
    """The prompts that contain none of the names; in published lists of indirect prompts, some contain one."""
    listed = list(names)
    return [prompt for prompt in prompts if not names_any(prompt, listed)]
