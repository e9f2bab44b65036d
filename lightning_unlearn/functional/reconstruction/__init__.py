"""Measurement physics, solvers and measures of image reconstruction."""

from lightning_unlearn.functional.reconstruction.stability import complex_mse, linear_decay, unrolled_stability

__all__ = ["complex_mse", "linear_decay", "unrolled_stability"]
