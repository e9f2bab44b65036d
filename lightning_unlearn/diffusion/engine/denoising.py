"""The loss that a diffusion model is trained with, of each image."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.diffusion.engine.model import alphas_bar, as_text_to_image, prediction_type, unet_output
from lightning_unlearn.diffusion.engine.text import encode
from lightning_unlearn.functional.diffusion.ddim import add_noise, prediction_target
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["batch_number", "denoising_nll", "image_latents", "row_numbers"]


def denoising_nll(module: LightningModule, batch: dict[str, Tensor]) -> Tensor:
    r"""Mean squared error of the model's output at a random noise level, $\|e(z_t, t, c) - e^*\|^2 / (C h w)$.

    Up to a weight of each level it bounds the negative log-likelihood, and stands for it in objectives. In training
    each batch has draws of its own, by its number in the run and the row's ``index``; elsewhere a row's draw is always
    the same, so that two models can be compared.

    Args:
        module: A module with the parts of
            [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage], and a ``vae``
            where rows are images.
        batch: ``input_ids (B, L)``, and ``pixel_values (B, 3, H, W)`` in [-1, 1] or ``latents (B, C, h, w)``; better
            with the rows' ``index (B,)``.

    Returns:
        Shape ``(B,)``, fp32.

    Raises:
        TypeError: If the batch is not such a dict.
    """
    if not isinstance(batch, dict) or "input_ids" not in batch or not {"pixel_values", "latents"} & batch.keys():
        got = f"a dict with {sorted(batch)}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise TypeError(
            f"denoising_nll reads a dict with 'input_ids' and 'pixel_values' or 'latents', but got {got}. Prompts "
            "without images are for methods that draw their own, such as ESD."
        )
    model, size = as_text_to_image(module), len(batch["input_ids"])
    rows = batch["index"].tolist() if "index" in batch else row_numbers(size)
    key = batch_number(module)
    latents = batch["latents"] if "latents" in batch else image_latents(module, batch["pixel_values"], rows, key)
    noise = row_noise(latents.shape[1:], rows, 1, key).to(latents)
    levels = alphas_bar(model)
    draws = [int(torch.randint(len(levels), (), generator=keyed_generator(2, key, row))) for row in rows]
    timesteps = torch.tensor(draws, device=latents.device)
    output = unet_output(
        model, add_noise(latents, noise, levels[timesteps]), timesteps, encode(model, batch["input_ids"])
    )
    target = prediction_target(latents, noise, levels[timesteps], prediction_type(model))
    return (output - target).square().flatten(1).mean(1)


@torch.no_grad()
def image_latents(module: LightningModule, pixels: Tensor, rows: list[int], key: int) -> Tensor:
    """Scaled latents of images, drawn from the autoencoder's posterior, in fp32: its activations overflow in fp16.

    Args:
        module: A module with a ``vae``.
        pixels: Shape ``(B, 3, H, W)``, in [-1, 1].
        rows: Number of each row, for its draw.
        key: What the draw is for.

    Returns:
        Shape ``(B, C, h, w)``.
    """
    vae: Any = module.vae
    with torch.autocast(pixels.device.type, enabled=False):
        posterior = vae.encode(pixels.float()).latent_dist
    draw = row_noise(posterior.mean.shape[1:], rows, 3, key).to(posterior.mean)
    return (posterior.mean + posterior.std * draw) * vae.config.scaling_factor


def batch_number(module: LightningModule) -> int:
    """Number of the training batch in the run, resumed or not; 0 where nothing trains."""
    trainer = module._trainer
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer is not None and trainer.training else 0


def row_numbers(size: int) -> list[int]:
    """Number of each row of a batch among those of all processes, which take turns."""
    return [i * world_size() + rank() for i in range(size)]
