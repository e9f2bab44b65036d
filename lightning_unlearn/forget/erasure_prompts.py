"""Prompts of a request to erase a concept: to train on, to keep, and to draw as evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_unlearn.benchmarks.requests import erasure_rows
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.canvas.concept import concept as miniature_concept
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, captions
from lightning_unlearn.diffusion.data.prompts import load_prompts
from lightning_unlearn.diffusion.data.retain_prompts import retain_prompts

__all__ = ["ErasurePrompts", "Picture", "miniature_prompts", "own_prompts"]

TRAINED = ("{}", "a picture, {}", "a house, {}", "a landscape, {}")
DRAWN = ("{}", "a street in the evening, {}", "flowers on a table, {}", "a quiet lake, {}")
"""Prompts of a concept: those that a method learns from, and those that show what it has done to others."""

_KEPT = 12  # prompts to keep that are drawn, evenly spread


@dataclass(frozen=True)
class Picture:
    """An image of the evidence.

    Args:
        role: ``"forget"`` or ``"keep"``.
        prompt: Its prompt.
        seed: Seed of its noise.
        row: Its row on the page.
        column: Its column there; ``""`` where a prompt has one image.
        shown: Whether the page shows it, beside being judged.
    """

    role: str
    prompt: str
    seed: int
    row: str
    column: str = ""
    shown: bool = True


@dataclass(frozen=True)
class ErasurePrompts:
    """What a request trains on and draws.

    Args:
        words: The words by which prompts call the concept.
        forget: Prompts of the concept, each with what it is to become as ``anchor``.
        keep: Prompts to keep.
        pictures: The images to draw of the model before and after.
        attacked: Prompts that an attack begins with, with their seeds.
        judges: Names of judges that know the concept and what is beside it.
        notes: What the user should know of them.
    """

    words: list[str]
    forget: list[dict[str, str]]
    keep: list[str]
    pictures: list[Picture]
    attacked: list[dict[str, Any]]
    judges: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, role: str) -> list[int]:
        """Places of the pictures of a role."""
        return [place for place, picture in enumerate(self.pictures) if picture.role == role]


def own_prompts(
    words: Sequence[str],
    anchor: str,
    keep: Source | None,
    prompts: Source | None,
    images: int,
    seed: int,
) -> ErasurePrompts:
    """Prompts for any pipeline.

    Args:
        words: The words by which prompts call the concept.
        anchor: What it is to become.
        keep: Prompts to keep; by default those of everyday objects.
        prompts: Prompts of the concept to draw; by default made from the words.
        images: Images of each of these.
        seed: Seed of the first image.

    Raises:
        ValueError: If a prompt to keep names the concept, or a source has no prompts.
    """
    forget = [
        {"prompt": form.format(word), "anchor": form.format(anchor).rstrip(", ")} for form in TRAINED for word in words
    ]
    drawn = [form.format(words[0]) for form in DRAWN] if prompts is None else _texts(prompts, "prompts")
    notes = []
    if keep is None:
        kept = retain_prompts(exclude=words)
        notes.append(
            "No --keep was given, so the prompts to keep are of everyday objects. Name those that are near to the "
            "concept, such as other painters: they suffer first."
        )
    else:
        kept = _texts(keep, "keep")
    for prompt in kept:
        if named := next((word for word in words if _names(prompt, word)), None):
            raise ValueError(f"The prompt to keep {prompt!r} has {named!r} in it, which is to be forgotten. Remove it.")
    shown = kept[:: -(-len(kept) // _KEPT)]
    texts = [(prompt, str(number + 1)) for prompt in drawn for number in range(images)]
    pictures = [Picture("forget", prompt, seed + i, prompt, column) for i, (prompt, column) in enumerate(texts)]
    pictures += [Picture("keep", prompt, seed + len(texts) + i, prompt) for i, prompt in enumerate(shown)]
    attacked = [{"prompt": p.prompt, "seed": p.seed} for p in pictures if p.role == "forget" and p.column == "1"]
    return ErasurePrompts(list(words), forget, kept, pictures, attacked, notes=notes)


def miniature_prompts(words: Sequence[str], images: int, seed: int) -> ErasurePrompts | None:
    """Prompts for the miniature pipeline, which names a concept by three words; ``None`` of a concept it does not know.

    Args:
        words: Words of one of its styles or objects.
        images: Images of each pair of the concept with one of the other kind.
        seed: Seed of the first image.
    """
    known = next((name for name, of in {**STYLES, **OBJECTS}.items() if set(words) <= set(of)), None)
    if known is None:
        return None
    concept = miniature_concept(known)
    forget, retain = erasure_rows(known)
    wanted = [("forget", known, partner, number) for partner in concept.partners for number in range(images)]
    wanted += [("keep", sibling, partner, 0) for sibling in concept.siblings for partner in concept.partners]
    pictures = []
    for place, (role, row, column, number) in enumerate(wanted):
        pair = (column, row) if concept.kind == "style" else (row, column)
        text = captions(*pair, seed=seed + place, heldout=True)[0]  # the pipeline was not trained on it
        pictures.append(Picture(role, text, seed + place, row, column, shown=number == 0))
    return ErasurePrompts(
        list(concept.words),
        forget,
        [row["prompt"] for row in retain],
        pictures,
        [{"prompt": concept.beside(known, p), "seed": seed + i} for i, p in enumerate(concept.partners)],
        [f"miniature-{concept.kind}", f"miniature-{concept.other}"],
        [f"Captions of the miniature call {known!r} by {len(concept.words)} names, and all of them are to go."],
    )


def _names(prompt: str, word: str) -> bool:
    """Whether a prompt has a word, and not only as a part of another one."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


def _texts(source: Source, name: str) -> list[str]:
    return [row["prompt"] for row in load_prompts(source, name)]
