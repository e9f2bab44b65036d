"""Measurement physics, solvers and measures of image reconstruction."""

from lightning_unlearn.functional.reconstruction.quality import (
    complex_psnr,
    hfen,
    magnitude_psnr,
    magnitude_ssim,
    nmse,
)

__all__ = [
    "complex_psnr",
    "hfen",
    "magnitude_psnr",
    "magnitude_ssim",
    "nmse",
]
