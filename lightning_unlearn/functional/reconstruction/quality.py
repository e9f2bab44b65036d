"""Quality of reconstructed images, one number per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["complex_psnr", "hfen", "magnitude_psnr", "magnitude_ssim", "nmse"]


def complex_psnr(image: Tensor, target: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio of complex images, in dB, which includes phase errors.

    $$10 \log_{10} \frac{\max |t|^2}{\frac{1}{HW} \sum |\hat x - t|^2}$$

    Args:
        image: Reconstructions $\hat x$, real or complex, shape ``(B, H, W)``.
        target: References $t$ of the same shape.

    Returns:
        Shape ``(B,)``, fp64; infinite for a perfect image.

    Raises:
        ValueError: If the shapes differ, or are not those of a batch of images.

    Example:
        >>> complex_psnr(torch.full((1, 4, 4), 1 + 0.1j), torch.ones(1, 4, 4))
        tensor([20.0000], dtype=torch.float64)
    """
    image, target = _pair(image, target)
    return _psnr(target.abs().amax((1, 2)), (image - target).abs().square())


def magnitude_psnr(image: Tensor, target: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio of magnitude images, in dB, relative to the peak of each reference.

    $$10 \log_{10} \frac{\max |t|^2}{\frac{1}{HW} \sum (|\hat x| - |t|)^2}$$

    Args:
        image: Reconstructions $\hat x$, real or complex, shape ``(B, H, W)``.
        target: References $t$ of the same shape.

    Returns:
        Shape ``(B,)``, fp64; infinite for a perfect image.

    Raises:
        ValueError: If the shapes differ, or are not those of a batch of images.

    Example:
        >>> magnitude_psnr(torch.full((1, 4, 4), 0.9j), torch.ones(1, 4, 4))
        tensor([20.0000], dtype=torch.float64)
    """
    image, target = _pair(image, target)
    return _psnr(target.abs().amax((1, 2)), (image.abs() - target.abs()).square())


def magnitude_ssim(image: Tensor, target: Tensor, window: int = 7) -> Tensor:
    r"""Structural similarity of magnitude images, with uniform windows, as computed by fastMRI and scikit-image.

    $$\frac{(2 \mu_x \mu_t + c_1)(2 \sigma_{xt} + c_2)}{(\mu_x^2 + \mu_t^2 + c_1)(\sigma_x^2 + \sigma_t^2 + c_2)},
    \qquad c_1 = (0.01\, L)^2,\ c_2 = (0.03\, L)^2,\ L = \max |t|$$

    averaged over the windows that lie inside the image, with unbiased variances. torchmetrics uses biased variances and
    treats borders differently, so its numbers differ in the second digit.

    Args:
        image: Reconstructions $\hat x$, real or complex, shape ``(B, H, W)``.
        target: References $t$ of the same shape.
        window: Side of the windows, odd.

    Returns:
        Shape ``(B,)``, fp64.

    Raises:
        ValueError: If the shapes differ, or an image is smaller than a window.

    Example:
        >>> image = torch.arange(64.0).view(1, 8, 8)
        >>> magnitude_ssim(image, image)
        tensor([1.], dtype=torch.float64)

    References:
        Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*, IEEE TIP 13(4), 2004;
        Zbontar et al., *fastMRI: An Open Dataset and Benchmarks for Accelerated MRI*, arXiv:1811.08839.
    """
    image, target = _pair(image, target)
    if window < 3 or window % 2 == 0 or window > min(image.shape[1:]):
        raise ValueError(
            f"window must be odd, at least 3 and at most the side of the image, but got {window} for images of "
            f"{image.shape[1]} × {image.shape[2]}."
        )
    x, t = image.abs(), target.abs()
    c1, c2 = ((share * t.amax((1, 2))[:, None, None]) ** 2 for share in (0.01, 0.03))
    mean_x, mean_t, mean_xx, mean_tt, mean_xt = (
        F.avg_pool2d(values[:, None], window, stride=1)[:, 0] for values in (x, t, x * x, t * t, x * t)
    )
    unbiased = window**2 / (window**2 - 1)
    var_x, var_t = unbiased * (mean_xx - mean_x**2), unbiased * (mean_tt - mean_t**2)
    covariance = unbiased * (mean_xt - mean_x * mean_t)
    luminance = (2 * mean_x * mean_t + c1) / (mean_x**2 + mean_t**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_t + c2)).mean((1, 2))


def nmse(image: Tensor, target: Tensor) -> Tensor:
    r"""Normalised mean squared error.

    $$\frac{\|\hat x - t\|_2^2}{\|t\|_2^2}$$

    Args:
        image: Reconstructions $\hat x$, real or complex, shape ``(B, H, W)``.
        target: References $t$ of the same shape.

    Returns:
        Shape ``(B,)``, fp64.

    Raises:
        ValueError: If the shapes differ, or are not those of a batch of images.

    Example:
        >>> nmse(torch.full((1, 4, 4), 0.9), torch.ones(1, 4, 4))
        tensor([0.0100], dtype=torch.float64)
    """
    image, target = _pair(image, target)
    return (image - target).abs().square().sum((1, 2)) / target.abs().square().sum((1, 2))


def hfen(image: Tensor, target: Tensor, sigma: float = 1.5, size: int = 13) -> Tensor:
    r"""High-frequency error norm: the relative error of edges and fine detail.

    $$\frac{\|\mathrm{LoG} * \hat x - \mathrm{LoG} * t\|_2}{\|\mathrm{LoG} * t\|_2}$$

    with a Laplacian of a Gaussian whose entries sum to 0. The image is padded with zeros.

    Args:
        image: Reconstructions $\hat x$, real or complex, shape ``(B, H, W)``.
        target: References $t$ of the same shape.
        sigma: Width of the Gaussian, in pixels.
        size: Side of the filter, odd.

    Returns:
        Shape ``(B,)``, fp64.

    Raises:
        ValueError: If the shapes differ, sigma is not positive, or the size is even.

    Example:
        >>> image = torch.arange(64.0).view(1, 8, 8)
        >>> hfen(0.9 * image, image)
        tensor([0.1000], dtype=torch.float64)

    References:
        Ravishankar and Bresler, *MR Image Reconstruction From Highly Undersampled k-Space Data by Dictionary Learning*,
        IEEE TMI 30(5), 2011.
    """
    if sigma <= 0 or size % 2 == 0:
        raise ValueError(f"sigma must be positive and size odd, but got sigma={sigma}, size={size}.")
    image, target = _pair(image, target)
    kernel = _laplacian_of_gaussian(sigma, size, image.device)
    error, reference = _filtered(image - target, kernel), _filtered(target, kernel)
    return (error.square().sum((1, 2, 3)) / reference.square().sum((1, 2, 3))).sqrt()


def _laplacian_of_gaussian(sigma: float, size: int, device: torch.device) -> Tensor:
    place = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    square = (place[:, None] ** 2 + place**2) / (2 * sigma**2)
    gaussian = (-square).exp()
    kernel = gaussian / gaussian.sum() * (square - 1)
    return kernel - kernel.mean()


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Filtered real and imaginary parts ``(B, 2, H, W)``."""
    parts = torch.stack([images.real, images.imag] if images.is_complex() else [images, torch.zeros_like(images)], 1)
    return F.conv2d(parts, kernel.expand(2, 1, -1, -1), padding=kernel.shape[-1] // 2, groups=2)


def _psnr(peak: Tensor, squared_error: Tensor) -> Tensor:
    return 10 * torch.log10(peak.square() / squared_error.mean((1, 2)))


def _pair(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both images in double precision: variances of windows are small differences of large numbers."""
    if image.shape != target.shape or image.ndim != 3:
        raise ValueError(
            f"Images and references must both have the shape (B, H, W), but got {tuple(image.shape)} and "
            f"{tuple(target.shape)}."
        )
    return tuple(x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (image, target))  # type: ignore[return-value]
