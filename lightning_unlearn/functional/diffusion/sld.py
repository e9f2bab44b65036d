"""Safety guidance of Safe Latent Diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SLD_PRESETS", "SafetyConfig", "safety_guidance"]


@dataclass(frozen=True)
class SafetyConfig:
    r"""Strength and warm-up of safety guidance.

    Args:
        warmup: $\delta \ge 0$; number of initial sampler steps without guidance, which preserve the composition.
        scale: $s_S \ge 0$; with 0 there is no guidance.
        threshold: $\lambda$; with larger values, more of an image is steered.
        momentum_scale: $s_m \ge 0$.
        momentum_decay: $\beta_m$ in [0, 1).

    Raises:
        ValueError: If a number is out of range.
    """

    warmup: int = 10
    scale: float = 1000.0
    threshold: float = 0.01
    momentum_scale: float = 0.3
    momentum_decay: float = 0.4

    def __post_init__(self) -> None:
        for name in ("warmup", "scale", "momentum_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, but got {getattr(self, name)}.")
        if not 0 <= self.momentum_decay < 1:
            raise ValueError(f"momentum_decay must be in [0, 1), but got {self.momentum_decay}.")
        if self.threshold != self.threshold:
            raise ValueError("threshold must be a number, but got nan.")


SLD_PRESETS = {
    "weak": SafetyConfig(15, 20.0, 0.0, 0.0, 0.0),
    "medium": SafetyConfig(10, 1000.0, 0.01, 0.3, 0.4),
    "strong": SafetyConfig(7, 2000.0, 0.025, 0.5, 0.7),
    "max": SafetyConfig(0, 5000.0, 1.0, 0.5, 0.7),
}
"""The authors' settings, for 50 steps, with the numbers of the pipeline in diffusers."""


def safety_guidance(
    unconditional: Tensor,
    prompt: Tensor,
    concept: Tensor,
    momentum: Tensor,
    config: SafetyConfig = SLD_PRESETS["medium"],
) -> tuple[Tensor, Tensor]:
    r"""Safety guidance of a sampler step, and the momentum for the next step.

    The sampler follows $\epsilon_0 + s_g (\epsilon_p - \epsilon_0 - \gamma_t)$ with

    $$\gamma_t = \mu \odot (\epsilon_S - \epsilon_0) + s_m \nu_t, \qquad
    \mu = \begin{cases} \min(1,\, s_S |\epsilon_p - \epsilon_S|) & \epsilon_p - \epsilon_S < \lambda \\ 0 & \text{else}
    \end{cases}, \qquad
    \nu_{t+1} = \beta_m \nu_t + (1 - \beta_m) \gamma_t$$

    elementwise. During the warm-up the caller does not apply $\gamma_t$, but the momentum accumulates.

    Args:
        unconditional: $\epsilon_0$, noise predicted for the empty prompt, shape ``(B, C, h, w)``.
        prompt: $\epsilon_p$, noise predicted for the prompt, same shape.
        concept: $\epsilon_S$, noise predicted for the concept to avoid, same shape.
        momentum: $\nu_t$, same shape; 0 at the first step.
        config: The constants of the guidance.

    Returns:
        $\gamma_t$ and $\nu_{t+1}$, same shape.

    Example:
        >>> e_0, e_p, e_s = torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([1.25])
        >>> safety_guidance(e_0, e_p, e_s, torch.tensor([0.5]), SafetyConfig(0, 2.0, 0.0, 0.5, 0.75))
        (tensor([0.8750]), tensor([0.5938]))

    References:
        Schramowski et al., *Safe Latent Diffusion*, arXiv:2211.05105, eq. 3 to 8.
    """
    apart = prompt - concept
    mu = torch.where(apart < config.threshold, (config.scale * apart.abs()).clamp(max=1), 0.0)
    gamma = mu * (concept - unconditional) + config.momentum_scale * momentum
    return gamma, config.momentum_decay * momentum + (1 - config.momentum_decay) * gamma
