"""Images of a batch at random noise levels, with draws that belong to the batch and the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_unlearn.diffusion.engine.denoising import batch_number, image_latents, row_numbers
from lightning_unlearn.diffusion.engine.model import alphas_bar, as_text_to_image, prediction_type
from lightning_unlearn.functional.diffusion.ddim import add_noise, prediction_target
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["Noised", "noised"]


class Noised(NamedTuple):
    """Latents of images on their way to noise.

    Args:
        latents: $z_t$, shape ``(B, C, h, w)``.
        timesteps: $t$, shape ``(B,)``, int64.
        target: What a perfect model's output is, the noise or the velocity, shape ``(B, C, h, w)``.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor


def noised(
    module: LightningModule, rows: Mapping[str, Tensor], seed: int = 0, role: int = 0, density: Tensor | None = None
) -> Noised:
    """Add noise of a random level to each row's image.

    In training each batch has draws of its own, by its number in the run and the row's ``index``; elsewhere a row's
    draw is always the same.

    Args:
        module: A module with the parts of
            [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage], and a ``vae``
            where rows are images.
        rows: ``pixel_values (B, 3, H, W)`` in [-1, 1] or ``latents (B, C, h, w)``; better with ``index (B,)``.
        seed: Seed of the draws.
        role: Tells the draws of rows apart that have the same index in different roles.
        density: Probability of each noise level, shape ``(T,)``; by default all are equally likely.

    Raises:
        TypeError: If the rows have no images.
    """
    if not isinstance(rows, Mapping) or not {"pixel_values", "latents"} & rows.keys():
        got = f"a dict with {sorted(rows)}" if isinstance(rows, Mapping) else f"a {type(rows).__name__}"
        raise TypeError(
            "This method learns from images: rows need 'pixel_values' in [-1, 1] or 'latents', beside 'input_ids', "
            f"but got {got}. CaptionedImageDataModule makes such rows."
        )
    model = as_text_to_image(module)
    size = len(rows["latents"] if "latents" in rows else rows["pixel_values"])
    numbers = rows["index"].tolist() if "index" in rows else row_numbers(size)
    key = (seed, role, batch_number(module))
    if "latents" in rows:
        clean = rows["latents"]
    else:
        clean = image_latents(module, rows["pixel_values"], numbers, keyed_generator(*key).initial_seed())
    noise = row_noise(clean.shape[1:], numbers, *key, 1).to(clean)
    levels = alphas_bar(model)
    draws = [_level(len(levels), density, keyed_generator(*key, 2, number)) for number in numbers]
    timesteps = torch.tensor(draws, device=clean.device)
    share = levels[timesteps]
    return Noised(
        add_noise(clean, noise, share), timesteps, prediction_target(clean, noise, share, prediction_type(model))
    )


def _level(count: int, density: Tensor | None, generator: torch.Generator) -> int:
    if density is None:
        return int(torch.randint(count, (), generator=generator))
    return int(torch.multinomial(density.cpu(), 1, generator=generator))
