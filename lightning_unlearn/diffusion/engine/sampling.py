"""Latents as a sampler meets them on its way, without training images."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.diffusion.engine.model import TextToImage, alphas_bar, prediction_type, unet_output
from lightning_unlearn.functional.diffusion.ddim import ddim_step, ddim_timesteps, ldm_timesteps
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance

__all__ = ["Pairing", "partial_sample", "trajectory"]

Pairing = Literal["exact", "ldm"]


def trajectory(
    model: TextToImage, states: Tensor, empty: Tensor, noise: Tensor, *, steps: int = 50, guidance: float = 3.0
) -> Generator[tuple[Tensor, Tensor], int | None, None]:
    """Walk from noise to an image by DDIM, and give each latent with the timestep that it has the noise level of.

    Conditional and unconditional outputs come from one pass of the UNet, which is made when the next latent is asked
    for. Gradients are the caller's business. After ``send(n)`` only the first ``n`` rows go on.

    Args:
        model: The model.
        states: Text states of the prompts, shape ``(B, L, D)``.
        empty: Text states of the empty prompt, shape ``(B, L, D)``.
        noise: Shape ``(B, C, h, w)``.
        steps: Number of steps ``S``.
        guidance: Weight of classifier-free guidance; at 1 the empty prompt is left out.

    Yields:
        ``S + 1`` pairs: latents of shape ``(B, C, h, w)``, and a timestep, scalar int64. The last are the finished
        latents, with timestep 0.
    """
    levels, prediction = alphas_bar(model), prediction_type(model)
    offset = int(getattr(model.scheduler.config, "steps_offset", 1))
    timesteps = ddim_timesteps(steps, len(levels), offset).to(noise.device)
    latents = noise
    for number, timestep in enumerate(timesteps):
        rows = yield latents, timestep
        if rows is not None:
            latents, states, empty = latents[:rows], states[:rows], empty[:rows]
        if guidance == 1:
            output = unet_output(model, latents, timestep, states)
        else:
            both = torch.cat([empty, states])
            unconditional, conditional = unet_output(model, latents.repeat(2, 1, 1, 1), timestep, both).chunk(2)
            output = classifier_free_guidance(unconditional, conditional, guidance)
        after = levels[timesteps[number + 1]] if number + 1 < steps else levels[0]
        latents = ddim_step(latents, output, levels[timestep], after, prediction)
    yield latents, timesteps.new_zeros(())


def partial_sample(
    model: TextToImage,
    states: Tensor,
    empty: Tensor,
    noise: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 50,
    guidance: float = 3.0,
    pairing: Pairing = "exact",
) -> tuple[Tensor, Tensor]:
    """Stop the sampler after a random number of steps, without gradients.

    Args:
        model: The model.
        states: Text states of the prompts, shape ``(B, L, D)``.
        empty: Text states of the empty prompt, shape ``(B, L, D)``.
        noise: Shape ``(B, C, h, w)``.
        generator: Draws the number of steps, and the timestep where that is drawn; on the CPU.
        steps: Steps of the sampler ``S``; it stops after ``0 ... S - 1`` of them.
        guidance: Weight of classifier-free guidance.
        pairing: ``"exact"``: the timestep is the one that the latents have the noise level of. ``"ldm"``: as in the
            code of ESD's and AdvUnlearn's authors, which pairs latents with a timestep about two steps noisier, see
            [`ldm_timesteps`][lightning_unlearn.functional.diffusion.ddim.ldm_timesteps].

    Returns:
        Latents of shape ``(B, C, h, w)``, and the timestep for them, scalar int64.
    """
    choice = int(torch.randint(steps, (), generator=generator))
    run = choice
    if pairing == "ldm":
        run, low, high = ldm_timesteps(choice, steps, len(model.scheduler.alphas_cumprod))
    with torch.no_grad():
        walk = trajectory(model, states, empty, noise, steps=steps, guidance=guidance)
        latents, timestep = next(pair for number, pair in enumerate(walk) if number == run)
    if pairing == "ldm":
        timestep = torch.randint(low, high, (), generator=generator).to(timestep.device)
    return latents, timestep
