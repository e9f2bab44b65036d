"""Noise, perturbations and penalties that smooth a function."""

from lightning_unlearn.functional.smoothing.curvature import curvature_penalty, curvature_penalty_gradient
from lightning_unlearn.functional.smoothing.finite_difference import difference_step, hessian_vector_product
from lightning_unlearn.functional.smoothing.gaussian import gaussian_noise
from lightning_unlearn.functional.smoothing.gradient_penalty import gradient_penalty
from lightning_unlearn.functional.smoothing.sam import asam_perturbation, sam_perturbation

__all__ = [
    "asam_perturbation",
    "curvature_penalty",
    "curvature_penalty_gradient",
    "difference_step",
    "gaussian_noise",
    "gradient_penalty",
    "hessian_vector_product",
    "sam_perturbation",
]
