"""Reconstruction modes: smoothing, noise options and stability targets of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.reconstruction.attack import MeasurementPGD
from lightning_unlearn.reconstruction.smoothed import Smoothing
from lightning_unlearn.reconstruction.stability_targets import StabilityTarget
from lightning_unlearn.reconstruction.weight_encoder import WeightEncoder
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["OF_WHOLE", "Mode", "NoiseOptions", "check_parts", "smoothing_of", "target_of"]

Mode = Literal["vanilla", "rs_e2e", "rs_e2e_image", "smug", "smug_v0", "weighted_smug", "adversarial"]

_OF_DENOISER = ("smug", "smug_v0", "weighted_smug")
OF_WHOLE = ("rs_e2e", "rs_e2e_image")
"""Modes whose samples are whole reconstructions."""


@dataclass(frozen=True)
class NoiseOptions:
    r"""Options for drawing the noise of a smoothed network.

    Args:
        antithetic: Whether samples come in pairs $\eta, -\eta$.
        shared: Whether all steps of a network use the same noise.
        clamp: Limit of the real and imaginary parts of noisy images.
        seed: Seed of the noise.
    """

    antithetic: bool = False
    shared: bool = False
    clamp: float | None = None
    seed: int = 0


def smoothing_of(mode: Mode, sigma: float, n_samples: int, noise: NoiseOptions, encoder: nn.Module | None) -> Smoothing:
    """The smoothing of a mode."""
    smoother = GaussianSmoother(sigma, n_samples, noise.antithetic, seed=noise.seed)
    return Smoothing("vanilla" if mode == "adversarial" else mode, smoother, encoder, noise.shared, noise.clamp)


def target_of(mode: Mode, target: StabilityTarget | None) -> StabilityTarget | None:
    """The given stability target of a mode, or its default.

    Raises:
        ValueError: If the mode does not support the target.
    """
    choices: tuple[StabilityTarget, ...] = ()
    if mode in _OF_DENOISER:
        choices = ("label_denoised", "label", "self", "frozen")
    elif mode in OF_WHOLE:
        choices = ("label", "frozen")
    if target is None:
        return "label_denoised" if mode in _OF_DENOISER else None
    if not choices:
        raise ValueError(f"mode={mode!r} has no samples to hold to stability_target={target!r}. Leave it out.")
    return one_of(f"stability_target of mode={mode!r}", target, choices)


def check_parts(mode: Mode, encoder: WeightEncoder | None, adversary: MeasurementPGD | None) -> None:
    """Reject a part that belongs to another mode.

    Raises:
        ValueError: If there is such a part.
    """
    for name, part, owner in (("encoder", encoder, "weighted_smug"), ("adversary", adversary, "adversarial")):
        if part is not None and mode != owner:
            raise ValueError(f"{name} is of mode={owner!r}, but mode is {mode!r}. Leave it out, or change the mode.")
