"""DDIM sampling that stops at random noise levels, for methods without training images."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.diffusion.engine.model import (
    TextToImage,
    alphas_bar,
    guided_output,
    prediction_type,
    unet_output,
)
from lightning_unlearn.functional.diffusion.ddim import ddim_step, ddim_timesteps, ldm_timesteps

__all__ = ["Pairing", "Point", "partial_samples", "trajectory"]

Pairing = Literal["exact", "ldm"]

Point = tuple[Tensor, Tensor]
"""Latents ``(B, C, h, w)`` and their timestep, scalar int64."""


def trajectory(
    model: TextToImage, states: Tensor, empty: Tensor, noise: Tensor, *, steps: int = 50, guidance: float = 3.0
) -> Generator[Point, int | None, None]:
    """Sample images by DDIM, and yield the latents of each step with the timestep of their noise level.

    Conditional and unconditional outputs come from one pass of the UNet, which runs when the next latents are
    requested. The caller decides about gradients. After ``send(n)`` only the first ``n`` rows continue. Arguments are
    those of `partial_samples`; at guidance 1 the empty prompt is left out.

    Yields:
        ``steps + 1`` points; the last are the finished latents, with timestep 0.
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
            output = guided_output(model, latents, timestep, empty, states, guidance)
        after = levels[timesteps[number + 1]] if number + 1 < steps else levels[0]
        latents = ddim_step(latents, output, levels[timestep], after, prediction)
    yield latents, timesteps.new_zeros(())


@torch.no_grad()
def partial_samples(
    model: TextToImage,
    states: Tensor,
    empty: Tensor,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    *,
    steps: int = 50,
    guidance: float = 3.0,
    pairing: Pairing = "exact",
    rows: int | None = None,
) -> list[Point]:
    """Latents of one trajectory after random numbers of steps, without gradients.

    Args:
        model: The model.
        states: Text states of the prompts, shape ``(B, L, D)``.
        empty: Text states of the empty prompt, shape ``(B, L, D)``.
        noise: Shape ``(B, C, h, w)``.
        generators: Each draws a number of steps, and the timestep where that is drawn; on the CPU.
        steps: Steps of the sampler ``S``; it stops after ``0 ... S - 1`` of them.
        guidance: Weight of classifier-free guidance.
        pairing: ``"exact"``: the timestep is that of the latents' noise level. ``"ldm"``: as in the code of ESD's and
            AdvUnlearn's authors, latents are paired with a timestep that is about two steps noisier, see
            [`ldm_timesteps`][lightning_unlearn.functional.diffusion.ddim.ldm_timesteps].
        rows: Rows that the second and further generators are for; the first is for all.

    Returns:
        For each generator, latents of shape ``(B, C, h, w)``, and the timestep for them, scalar int64.
    """
    choices = [int(torch.randint(steps, (), generator=generator)) for generator in generators]
    ranges = [ldm_timesteps(choice, steps, len(model.scheduler.alphas_cumprod)) for choice in choices]
    stops = choices if pairing == "exact" else [run for run, _, _ in ranges]
    walk = trajectory(model, states, empty, noise, steps=steps, guidance=guidance)
    path: list[Point] = []
    while len(path) <= max(stops):
        path.append(walk.send(rows if len(path) > stops[0] else None))
    points = [path[stops[0]], *((path[stop][0][:rows], path[stop][1]) for stop in stops[1:])]
    if pairing == "exact":
        return points
    return [
        (latents, torch.randint(low, high, (), generator=generator).to(noise.device))
        for (latents, _), (_, low, high), generator in zip(points, ranges, generators, strict=True)
    ]
