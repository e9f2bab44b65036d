"""Measurements beyond UnlearnCanvas's protocol on the miniature: families of prompts, side effects, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_unlearn.benchmarks.miniature import DRAW
from lightning_unlearn.diffusion.canvas.attention import AttentionChange, attention_change, read_attention
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.families import FAMILIES, FamilyPrompt, family_prompts
from lightning_unlearn.diffusion.canvas.family_scores import FamilyCounts
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS
from lightning_unlearn.diffusion.canvas.neighbours import (
    Neighbours,
    concept_similarities,
    mask_overlaps,
    miniature_prompts,
    ranked_neighbours,
)
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["attention_reading", "draw_families", "family_counts", "miniature_neighbours", "visual_neighbours"]

Verdicts = dict[str, dict[str, list[int]]]
"""Of each family, of how many images of each prompt the judges say that they show the concept, and the partner."""


def draw_families(
    module: LitTextToImage,
    target: str,
    names: int = 1,
    left_out: Sequence[str] = (),
    families: Sequence[str] = FAMILIES,
    seeds: Sequence[int] = ANSWER_SEEDS,
    seed: int = 0,
    drawing: Mapping[str, Any] | None = None,
) -> Verdicts:
    """Draw the prompts of families, and judge the images.

    Args:
        module: The model.
        target: The concept.
        names: Number of its names that were erased.
        left_out: Partners that no row of the run named.
        families: The families.
        seeds: Seeds of the images of each prompt.
        seed: Seed of the captions; for all of these see
            [`family_prompts`][lightning_unlearn.diffusion.canvas.families.family_prompts].
        drawing: Further arguments of ``generate``, by default those of the other benchmarks.

    Returns:
        ``{family: {"shown": [...], "rest": [...]}}`` with a number of images for each prompt.
    """
    c, rows = concept(target), family_prompts(target, names, left_out, families, seeds, seed)
    asked = [(row.prompt, image_seed) for row in rows for image_seed in row.seeds]
    images = module.generate([prompt for prompt, _ in asked], [s for _, s in asked], **(drawing or DRAW))
    own, other = MiniatureJudge(c.kind), MiniatureJudge(c.other)
    partners = [other.classes.index(row.partner) for row in rows]
    shown = (own(images)[0] == own.classes.index(target)).reshape(len(rows), len(seeds)).sum(1)
    rest = (other(images)[0].reshape(len(rows), len(seeds)) == torch.tensor(partners)[:, None]).sum(1)
    return {
        family: {"shown": shown[places].tolist(), "rest": rest[places].tolist()}
        for family, places in _places(rows).items()
    }


def _places(rows: Sequence[FamilyPrompt]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        places.setdefault(row.family, []).append(number)
    return places


def family_counts(
    after: Mapping[str, Mapping[str, Sequence[int]]],
    base: Mapping[str, Mapping[str, Sequence[int]]],
    seeds: int = len(ANSWER_SEEDS),
) -> dict[str, FamilyCounts]:
    """Counts of each family for the erased model and for the model before erasure.

    Args:
        after: Result of `draw_families` for the erased model.
        base: The same for the model before erasure, with the same arguments.
        seeds: Images of each prompt.

    Raises:
        ValueError: If the families or their prompts differ.
    """
    if list(after) != list(base):
        raise ValueError(
            f"The families drawn after and before erasure, {list(after)} and {list(base)}, are not the same: draw both "
            "with the same arguments."
        )
    return {
        family: FamilyCounts(tuple(rows["shown"]), tuple(base[family]["shown"]), tuple(rows["rest"]), seeds)
        for family, rows in after.items()
    }


def miniature_neighbours(base: LitTextToImage, target: str) -> Neighbours:
    """The two nearest and the two furthest concepts of the miniature by what the cross-attention reads of them."""
    c = concept(target)
    names = list(STYLES if c.kind == "style" else OBJECTS)
    return ranked_neighbours(concept_similarities(base, miniature_prompts(c.kind)), names, target, anchor=c.anchor)


def visual_neighbours(target: str) -> Neighbours:
    """The two objects of the miniature whose shapes overlap the most with the target's, and the two with the least.

    Raises:
        ValueError: If the target is not an object.
    """
    return ranked_neighbours(mask_overlaps(), list(OBJECTS), target, anchor=concept(target).anchor)


def attention_reading(
    module: LitTextToImage, base: LitTextToImage, target: str, shown: Sequence[int], left_out: Sequence[str] = ()
) -> AttentionChange:
    """How erasure changed the attention to a concept's name on the prompts of the family ``"name"``.

    Args:
        module: The erased model.
        base: The model before.
        target: The concept.
        shown: How many images of each prompt show the concept, as `draw_families` gives it.
        left_out: Partners that no row of the run named.
    """
    rows = family_prompts(target, left_out=left_out, families=["name"])
    asked = [(row.prompt, seed) for row in rows for seed in row.seeds]
    options: dict[str, Any] = {**DRAW, "words": concept(target).words[:1], "seeds": [seed for _, seed in asked]}
    after, before = (read_attention(model, [prompt for prompt, _ in asked], **options) for model in (module, base))
    return attention_change(after, before, torch.tensor(shown) / len(ANSWER_SEEDS))
