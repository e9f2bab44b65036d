"""Images at random noise levels, and the denoising loss of a diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.diffusion.engine.draws import Draws, batch_number, index_of_rows
from lightning_unlearn.diffusion.engine.model import alphas_bar, as_text_to_image, prediction_type, unet_output
from lightning_unlearn.diffusion.engine.text import encode
from lightning_unlearn.functional.diffusion.ddim import add_noise, prediction_target
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator, keyed_seed

__all__ = ["Noised", "anchor_output", "anchors", "denoising_loss", "denoising_nll", "noised"]


class Noised(NamedTuple):
    """Images at a noise level.

    Args:
        latents: $z_t$, shape ``(B, C, h, w)``.
        timesteps: $t$, shape ``(B,)``, int64.
        target: What a perfect model's output is, the noise or the velocity, shape ``(B, C, h, w)``.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor


def noised(
    module: LightningModule, rows: Mapping[str, Tensor], draws: Draws, role: int = 0, density: Tensor | None = None
) -> Noised:
    """Add noise of a random level to each row's image.

    Args:
        module: A module with the parts of
            [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage], and a ``vae`` where rows are images.
        rows: ``pixel_values (B, 3, H, W)`` in [-1, 1] or ``latents (B, C, h, w)``; better with ``index (B,)``.
        draws: Seed and number of the batch.
        role: Distinguishes the random draws of rows that have the same index in different roles.
        density: Probability of each noise level, shape ``(T,)``; by default all are equally likely.

    Raises:
        TypeError: If the rows have no images.
    """
    numbers, key = _image_rows(rows), (draws.seed, role, draws.batch)
    clean = _latents(module, rows, numbers, keyed_seed(*key))
    noise = row_noise(clean.shape[1:], numbers, *key, 1).to(clean)
    return _at_levels(module, clean, noise, [_level(module, density, keyed_generator(*key, 2, n)) for n in numbers])


def denoising_nll(module: LightningModule, batch: Mapping[str, Tensor]) -> Tensor:
    r"""Mean squared error of the model's output at a random noise level, $\|e(z_t, t, c) - e^*\|^2 / (C h w)$.

    Up to a weight for each noise level, it is a bound of the negative log-likelihood, which it replaces in objectives.
    In training the draws depend on the batch's number in the run and the row's ``index``. Elsewhere a row always has
    the same draw, so that two models can be compared.

    Args:
        module: A module with the parts of
            [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage], and a ``vae`` where rows are images.
        batch: ``input_ids (B, L)``, and ``pixel_values (B, 3, H, W)`` in [-1, 1] or ``latents (B, C, h, w)``; better
            with the rows' ``index (B,)``.

    Returns:
        Shape ``(B,)``, fp32.

    Raises:
        TypeError: If the batch is not such a dict.
    """
    numbers, key = _image_rows(batch), batch_number(module)
    clean = _latents(module, batch, numbers, key)
    noise = row_noise(clean.shape[1:], numbers, 1, key).to(clean)
    rows = _at_levels(module, clean, noise, [_level(module, None, keyed_generator(2, key, n)) for n in numbers])
    model = as_text_to_image(module)
    output = unet_output(model, rows.latents, rows.timesteps, encode(model, batch["input_ids"]))
    return (output - rows.target).square().flatten(1).mean(1)


def denoising_loss(
    module: LightningModule, batch: Mapping[str, Tensor], rows: Noised, target: Tensor | None = None
) -> Tensor:
    """Distance from a target at noised images, a scalar; by default the loss that the model was trained with."""
    model = as_text_to_image(module)
    output = unet_output(model, rows.latents, rows.timesteps, encode(model, batch["input_ids"]))
    return F.mse_loss(output, (rows.target if target is None else target).float())


def anchors(method: str, rows: Mapping[str, Tensor]) -> Tensor:
    """Token ids of the rows' anchors, shape ``(B, L)``.

    Raises:
        MisconfigurationException: If the rows have none.
    """
    if "anchor_input_ids" not in rows:
        raise MisconfigurationException(
            f"{method} makes a concept its anchor, but the forget rows have no 'anchor_input_ids'; they have "
            f"{sorted(rows)}. CaptionedImageDataModule(anchor=...) and PromptDataModule(anchor=...) make them."
        )
    return rows["anchor_input_ids"]


def anchor_output(module: LightningModule, method: str, batch: Mapping[str, Tensor], rows: Noised) -> Tensor:
    """Output of the model as it is for the anchors of noised rows, without gradient, shape ``(B, C, h, w)``.

    Raises:
        MisconfigurationException: If the rows have no anchors.
    """
    model, ids = as_text_to_image(module), anchors(method, batch)
    with without_gradients():
        return unet_output(model, rows.latents, rows.timesteps, encode(model, ids))


def _image_rows(batch: Mapping[str, Tensor]) -> list[int]:
    """The index of each row, which must have an image."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch or not {"pixel_values", "latents"} & batch.keys():
        got = f"a dict with {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise TypeError(
            "The denoising loss is of images: rows need 'input_ids' of a caption, and 'pixel_values' in [-1, 1] or "
            f"'latents', but got {got}. CaptionedImageDataModule makes such rows. Prompts without images are for "
            "methods that draw their own, such as ESD."
        )
    return index_of_rows(batch)


@torch.no_grad()
def _latents(module: LightningModule, rows: Mapping[str, Tensor], numbers: list[int], key: int) -> Tensor:
    """Scaled latents of images, drawn from the autoencoder's posterior, in fp32: its activations overflow in fp16."""
    if "latents" in rows:
        return rows["latents"]
    vae: Any = module.vae
    pixels = rows["pixel_values"]
    with torch.autocast(pixels.device.type, enabled=False):
        posterior = vae.encode(pixels.float()).latent_dist
    draw = row_noise(posterior.mean.shape[1:], numbers, 3, key).to(posterior.mean)
    return (posterior.mean + posterior.std * draw) * vae.config.scaling_factor


def _level(module: LightningModule, density: Tensor | None, generator: torch.Generator) -> int:
    if density is None:
        return int(torch.randint(len(as_text_to_image(module).scheduler.alphas_cumprod), (), generator=generator))
    return int(torch.multinomial(density.cpu(), 1, generator=generator))


def _at_levels(module: LightningModule, clean: Tensor, noise: Tensor, levels: list[int]) -> Noised:
    model, timesteps = as_text_to_image(module), torch.tensor(levels, device=clean.device)
    share = alphas_bar(model)[timesteps]
    target = prediction_target(clean, noise, share, prediction_type(model))
    return Noised(add_noise(clean, noise, share), timesteps, target)
