"""Noise levels of diffusion models and the deterministic DDIM sampler."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Prediction",
    "add_noise",
    "attack_timesteps",
    "ddim_step",
    "ddim_timesteps",
    "ldm_timesteps",
    "prediction_target",
]

Prediction = Literal["epsilon", "v_prediction"]


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    r"""Noisy latents: $z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$.

    Args:
        latents: $z_0$, shape ``(B, C, H, W)``.
        noise: $\epsilon$, same shape.
        alpha_bar: $\bar\alpha_t$ in [0, 1] of each row, shape ``(B,)`` or a scalar.

    Returns:
        Shape ``(B, C, H, W)``.

    Example:
        >>> add_noise(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor(0.36)).item()
        1.4...
    """
    a = _per_row(alpha_bar, latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def prediction_target(latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: Prediction) -> Tensor:
    r"""Target of the model: $\epsilon$, or $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1-\bar\alpha_t}\,z_0$.

    Args:
        latents: $z_0$, shape ``(B, C, H, W)``.
        noise: $\epsilon$, same shape.
        alpha_bar: $\bar\alpha_t$ in [0, 1] of each row, shape ``(B,)`` or a scalar.
        prediction: ``"epsilon"`` or ``"v_prediction"``.

    Returns:
        Shape ``(B, C, H, W)``.

    Raises:
        ValueError: If ``prediction`` is neither.

    Example:
        >>> z, noise = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
        >>> prediction_target(z, noise, torch.tensor(0.36), "v_prediction").item()
        0.4...

    References:
        Salimans and Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, arXiv:2202.00512.
    """
    if prediction == "epsilon":
        return noise
    _check_prediction(prediction)
    a = _per_row(alpha_bar, latents)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def ddim_step(
    latents: Tensor, output: Tensor, alpha_bar: Tensor, next_alpha_bar: Tensor, prediction: Prediction
) -> Tensor:
    r"""One deterministic DDIM step: $z_s = \sqrt{\bar\alpha_s}\,\hat z_0 + \sqrt{1-\bar\alpha_s}\,\hat\epsilon$.

    Args:
        latents: $z_t$, shape ``(B, C, H, W)``.
        output: The model's output for them, same shape.
        alpha_bar: $\bar\alpha_t$ in (0, 1), scalar.
        next_alpha_bar: $\bar\alpha_s$ of the lower noise level, scalar.
        prediction: Kind of the output: ``"epsilon"`` or ``"v_prediction"``.

    Returns:
        Shape ``(B, C, H, W)``.

    Raises:
        ValueError: If ``prediction`` is neither.

    Example:
        >>> z, noise = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> a, b = torch.tensor(0.36), torch.tensor(0.64)
        >>> torch.allclose(ddim_step(add_noise(z, noise, a), noise, a, b, "epsilon"), add_noise(z, noise, b))
        True

    References:
        Song et al., *Denoising Diffusion Implicit Models*, arXiv:2010.02502, eq. 12 with sigma 0.
    """
    _check_prediction(prediction)
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction == "epsilon":
        start, noise = (latents - spread * output) / signal, output
    else:
        start, noise = signal * latents - spread * output, signal * output + spread * latents
    return next_alpha_bar.sqrt() * start + (1 - next_alpha_bar).sqrt() * noise


def ddim_timesteps(steps: int, train_steps: int = 1000, offset: int = 1) -> Tensor:
    """Evenly spaced timesteps of a sampler, from the noisy end.

    Args:
        steps: Number of steps ``S``.
        train_steps: Number of noise levels ``T`` that the model was trained on.
        offset: The last timestep; 1 for Stable Diffusion.

    Returns:
        Shape ``(S,)``, int64, descending.

    Raises:
        ValueError: If there are fewer levels than steps.

    Example:
        >>> ddim_timesteps(50)[:3], ddim_timesteps(50)[-1]
        (tensor([981, 961, 941]), tensor(1))
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be in [1, {train_steps}], the number of noise levels, but got {steps}.")
    return (torch.arange(steps - 1, -1, -1) * (train_steps // steps) + offset).clamp(max=train_steps - 1)


def ldm_timesteps(index: int, steps: int, train_steps: int = 1000) -> tuple[int, int, int]:
    """Pairing of latents with a timestep in the code of the authors of ESD and AdvUnlearn.

    ``index`` counts sampler steps from the clean end. The sampler stops after step ``index - 1``, so the latents are at
    the noise level of step ``index - 2``, while the timestep belongs to step ``index``: the latents are about two steps
    cleaner than the timestep says. Indices 0 and 1 both run all steps.

    Args:
        index: In ``[0, steps)``.
        steps: Number of sampler steps.
        train_steps: Number of noise levels.

    Returns:
        The number of steps to run, and the range ``[low, high)`` from which the timestep is drawn.

    Example:
        >>> ldm_timesteps(0, 50), ldm_timesteps(25, 50), ldm_timesteps(49, 50)
        ((50, 0, 20), (26, 500, 520), (2, 980, 1000))
    """
    run = steps if index == 0 else steps - index + 1
    return run, round(index / steps * train_steps), round((index + 1) / steps * train_steps)


def attack_timesteps(levels: int = 50, train_steps: int = 1000) -> list[int]:
    """Timesteps at the centres of equal parts of the noise levels, from the clean end.

    Args:
        levels: Number of timesteps.
        train_steps: Number of noise levels ``T`` that the model was trained on.

    Raises:
        ValueError: If there are fewer levels than timesteps.

    Example:
        >>> attack_timesteps(10)
        [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    """
    if not 1 <= levels <= train_steps:
        raise ValueError(f"levels must be in [1, {train_steps}], the number of noise levels, but got {levels}.")
    width = train_steps // levels
    return [width // 2 + i * width for i in range(levels)]


def _per_row(alpha_bar: Tensor, like: Tensor) -> Tensor:
    return alpha_bar.reshape(-1, *[1] * (like.dim() - 1)).to(like)


def _check_prediction(prediction: str) -> None:
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction must be 'epsilon' or 'v_prediction', but got {prediction!r}.")
