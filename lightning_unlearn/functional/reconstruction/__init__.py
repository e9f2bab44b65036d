"""Measurement physics, solvers and measures of image reconstruction."""

from lightning_unlearn.functional.reconstruction.data_consistency import data_consistency, solve_normal_equations
from lightning_unlearn.functional.reconstruction.fourier import (
    as_channels,
    as_complex,
    centred_fft2,
    centred_ifft2,
    centring_phases,
)
from lightning_unlearn.functional.reconstruction.quality import complex_psnr, hfen, magnitude_psnr, magnitude_ssim, nmse
from lightning_unlearn.functional.reconstruction.stability import complex_mse, linear_decay, unrolled_stability

__all__ = [
    "as_channels",
    "as_complex",
    "centred_fft2",
    "centred_ifft2",
    "centring_phases",
    "complex_mse",
    "complex_psnr",
    "data_consistency",
    "hfen",
    "linear_decay",
    "magnitude_psnr",
    "magnitude_ssim",
    "nmse",
    "solve_normal_equations",
    "unrolled_stability",
]
