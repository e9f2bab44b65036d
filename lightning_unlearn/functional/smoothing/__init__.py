"""Noise, perturbations and penalties that smooth a function."""

from lightning_unlearn.functional.smoothing.gaussian import gaussian_noise
from lightning_unlearn.functional.smoothing.sam import asam_perturbation, sam_perturbation

__all__ = ["asam_perturbation", "gaussian_noise", "sam_perturbation"]
