"""Noise, perturbations and penalties that smooth a function."""

from lightning_unlearn.functional.smoothing.gaussian import gaussian_noise

__all__ = ["gaussian_noise"]
