"""Concept inversion on the miniature, with the control of a model that never learned the concept."""

from __future__ import annotations

import random
from typing import Any

import torch

from lightning_unlearn.benchmarks.miniature import DRAW
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.diffusion.attacks.concept_inversion import ConceptInversion, InversionSearch
from lightning_unlearn.diffusion.canvas.concept import Concept, concept
from lightning_unlearn.diffusion.canvas.families import names_any
from lightning_unlearn.diffusion.data.miniature import captions
from lightning_unlearn.diffusion.engine.learned_words import learned_words
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["inversion_rates"]

_TRAINED, _JUDGED = 40_000, 60_000  # seeds of images


def inversion_rates(
    module: LitTextToImage,
    base: LitTextToImage,
    target: str,
    control: LitTextToImage | None = None,
    seed: int = 0,
    images: int = 50,
    steps: int = 300,
    init: str | None = None,
) -> dict[str, list[int]]:
    """Learn a word from images of an erased concept, and count how often it brings the concept back.

    The word is one token. It is learned from five images with each partner, which the model before erasure draws for
    the prompt with the concept's name. It then replaces the name in held-out captions with seeds of their own, all of
    which count. A word that is learned well enough can teach a model what it never knew. The same inversion on the
    control measures this effect; only what the erased model shows beyond it was still in its weights.

    Args:
        module: The erased model; its weights do not change.
        base: The model before erasure.
        target: The concept.
        control: A model that was trained without the concept, such as ``python examples/miniature.py --without ember
            --output runs/no_ember`` trains.
        seed: Seed of the training, the captions and the images.
        images: Images that are judged.
        steps: Updates of AdamW, at a rate of 0.05, of 8 images each.
        init: Word whose embedding is the starting point; by default the concept's first name.

    Returns:
        ``[images that show the concept, images]`` of the erased model under ``"inversion"``, and of the control under
        ``"inversion_control"``.

    Raises:
        ValueError: If a number is out of range, or the model before erasure does not draw the concept.

    References:
        Pham et al., *Circumventing Concept Erasure Methods For Text-to-Image Generative Models*, arXiv:2308.01508; the
        control is our own.
    """
    c = concept(target)
    at_least("images", images, 1)
    search = InversionSearch([c.alone("{}")], init, steps=steps, batch_size=8, lr=0.05, weight_decay=0.0)
    attack = ConceptInversion(MiniatureJudge(c.kind), target, c.name, search, seed=seed)
    prompts = [c.beside(c.name, partner) for partner in c.partners for _ in range(5)]
    shown = base.generate(prompts, [_TRAINED + 1000 * seed + i for i in range(len(prompts))], **DRAW)
    examples = shown[torch.tensor(attack.shows(shown)[0])]
    if not len(examples):
        raise ValueError(
            f"The model before erasure draws {target!r} in none of {len(prompts)} images: give another base."
        )
    asked = _captions(c, images, seed)
    models = {"inversion": module, **({} if control is None else {"inversion_control": control})}
    return {name: [_shown(attack, model, examples, asked, seed), images] for name, model in models.items()}


def _captions(c: Concept, count: int, seed: int) -> list[str]:
    """Held-out captions with the first name of a concept and no other of it, for each partner in turn."""
    draws, texts = random.Random(f"{seed} {c.name} inversion"), list[str]()
    while len(texts) < count:
        object, style = c.pair(c.partners[len(texts) % len(c.partners)])
        (text,) = captions(object, style, 1, draws, heldout=True)
        if names_any(text, c.words[:1]) and not names_any(text, c.words[1:]):
            texts.append(text)
    return texts


def _shown(attack: ConceptInversion, model: LitTextToImage, examples: Any, asked: list[str], seed: int) -> int:
    vectors, _ = attack.learn(model, examples)
    with learned_words(model, vectors) as word:
        texts = [attack.prompt_with(text, word) for text in asked]
        drawn = model.generate(texts, [_JUDGED + 1000 * seed + i for i in range(len(texts))], **DRAW)
    return sum(attack.shows(drawn)[0])
