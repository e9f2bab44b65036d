"""Measurement physics, solvers and quality measures of image reconstruction."""

from lightning_unlearn.functional.reconstruction.coils import birdcage_maps, maps_from_center, normalized_maps
from lightning_unlearn.functional.reconstruction.cropping import centre_crop
from lightning_unlearn.functional.reconstruction.data_consistency import data_consistency, solve_normal_equations
from lightning_unlearn.functional.reconstruction.fourier import (
    as_channels,
    as_complex,
    centred_fft2,
    centred_ifft2,
    centring_phases,
)
from lightning_unlearn.functional.reconstruction.lipschitz import (
    estimate_lipschitz,
    smoothed_lipschitz_bound,
    unrolled_stability_bound,
)
from lightning_unlearn.functional.reconstruction.masks import MaskPattern, column_mask
from lightning_unlearn.functional.reconstruction.perturbation import ascent_step, l2_norms, project_l2, project_linf
from lightning_unlearn.functional.reconstruction.quality import complex_psnr, hfen, magnitude_psnr, magnitude_ssim, nmse
from lightning_unlearn.functional.reconstruction.soft_threshold import soft_threshold
from lightning_unlearn.functional.reconstruction.stability import complex_mse, linear_decay, unrolled_stability

__all__ = [
    "MaskPattern",
    "as_channels",
    "as_complex",
    "ascent_step",
    "birdcage_maps",
    "centre_crop",
    "centred_fft2",
    "centred_ifft2",
    "centring_phases",
    "column_mask",
    "complex_mse",
    "complex_psnr",
    "data_consistency",
    "estimate_lipschitz",
    "hfen",
    "l2_norms",
    "linear_decay",
    "magnitude_psnr",
    "magnitude_ssim",
    "maps_from_center",
    "nmse",
    "normalized_maps",
    "project_l2",
    "project_linf",
    "smoothed_lipschitz_bound",
    "soft_threshold",
    "solve_normal_equations",
    "unrolled_stability",
    "unrolled_stability_bound",
]
