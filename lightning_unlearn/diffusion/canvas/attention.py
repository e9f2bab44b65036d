"""Attention to an erased concept's words, before and after erasure: its mass, and how far it spreads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.diffusion.engine.attention import attention_probabilities
from lightning_unlearn.diffusion.engine.model import as_text_to_image, latent_shape
from lightning_unlearn.diffusion.engine.pipeline import draw
from lightning_unlearn.diffusion.engine.text import concept_tokens, tokenize
from lightning_unlearn.functional.diffusion.attention_spread import attention_map, attention_spread, half_mass_area

__all__ = ["AttentionChange", "AttentionReading", "attention_change", "read_attention"]


@dataclass(frozen=True)
class AttentionReading:
    """Attention to a concept's words while images are drawn, for each of ``N`` images.

    Args:
        spread: Entropy of the attention map over the image, see
            [`attention_spread`][lightning_unlearn.functional.diffusion.attention_spread.attention_spread], ``(N,)``.
        area50: Share of the image that holds half of the attention mass, shape ``(N,)``.
        mass: Mean over the image of the attention to the words, shape ``(N,)``.
    """

    spread: Tensor
    area50: Tensor
    mass: Tensor


@dataclass(frozen=True)
class AttentionChange:
    """Attention after erasure minus attention before it, as means over images.

    Args:
        spread: Change of the spread.
        area50: Change of the area that holds half of the mass.
        mass: Change of the mass.
        correlation: Spearman's correlation, over prompts, between the absolute change of the spread and how often the
            concept is shown; ``None`` if one of the two is constant.
    """

    spread: float
    area50: float
    mass: float
    correlation: float | None

    def to_dict(self) -> dict[str, float | None]:
        """As JSON takes it."""
        return asdict(self)


def read_attention(
    module: nn.Module,
    prompts: Sequence[str],
    words: Sequence[str],
    seeds: Sequence[int],
    steps: int = 50,
    guidance: float = 7.5,
    batch_size: int = 8,
) -> AttentionReading:
    """Draw images, and record the attention to a concept's words while doing so.

    Maps are means over the steps of the sampler, the cross-attention layers and their heads. With guidance, only the
    half of the pass with the prompt counts. At any time, the attention of one batch in one step is held in memory.

    Args:
        module: A module with the parts of [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage].
        prompts: ``N`` prompts, each of which contains one of the words.
        words: Names of the concept.
        seeds: Seed of each image.
        steps: Steps of the sampler.
        guidance: Weight of classifier-free guidance.
        batch_size: Images drawn together.

    Raises:
        ValueError: If a prompt has none of the words, or there are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"Each prompt needs a seed of its own, but got {len(prompts)} and {len(seeds)}.")
    at_least("the number of prompts", len(prompts), 1)
    at_least("batch_size", batch_size, 1)
    model = as_text_to_image(module)
    positions = concept_tokens(model, tokenize(model.tokenizer, prompts)["input_ids"], words).any(0)
    maps = []
    for i in range(0, len(prompts), batch_size):
        part = slice(i, i + batch_size)
        with _maps(model, positions[part]) as passes:
            draw(module, [(p, s, guidance) for p, s in zip(prompts[part], seeds[part], strict=True)], steps)
        maps.append(torch.stack(passes).mean(0))
    held = torch.cat(maps)
    return AttentionReading(attention_spread(held), half_mass_area(held), held.double().mean((1, 2)))


@contextmanager
def _maps(model: Any, positions: Tensor) -> Iterator[list[Tensor]]:
    """Record the map of each pass of the UNet; the attention itself is dropped after each."""
    grid, passes = latent_shape(model)[1:], list[Tensor]()
    with attention_probabilities(model.unet) as recorded:

        def read(*_: Any) -> None:
            layers = [calls.pop()[-len(positions) :] for calls in recorded.values()]
            passes.append(attention_map(layers, positions.to(layers[0].device), grid).cpu())

        handle = model.unet.register_forward_hook(read)
        try:
            yield passes
        finally:
            handle.remove()


def attention_change(after: AttentionReading, before: AttentionReading, shown: Tensor) -> AttentionChange:
    """How erasure changed the attention.

    Args:
        after: Attention of the erased model.
        before: Attention of the model before erasure, for the same prompts and seeds.
        shown: For each prompt, share of the erased model's images that show the concept, shape ``(P,)``. All prompts
            have the same number of images, and the images of a prompt follow one another.

    Raises:
        ValueError: If the numbers of images differ.
    """
    images = len(after.spread)
    if images != len(before.spread) or images % max(len(shown), 1):
        raise ValueError(
            f"Readings of {images} and {len(before.spread)} images are not of the same images of {len(shown)} prompts."
        )
    moved = (after.spread - before.spread).abs().reshape(len(shown), -1).mean(1)
    return AttentionChange(
        spread=float((after.spread - before.spread).mean()),
        area50=float((after.area50 - before.area50).mean()),
        mass=float((after.mass - before.mass).mean()),
        correlation=_spearman(moved, shown),
    )


def _spearman(one: Tensor, other: Tensor) -> float | None:
    try:
        from scipy.stats import spearmanr
    except ImportError:
        raise ImportError('Correlations need scipy: pip install "lightning-unlearn[diffusion]"') from None
    if len(one.unique()) < 2 or len(other.unique()) < 2:
        return None
    return float(spearmanr(one.numpy(), other.numpy()).statistic)
