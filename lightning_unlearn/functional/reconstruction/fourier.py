"""Centred, orthonormal Fourier transforms of images, and conversion of complex images to channels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_channels", "as_complex", "centred_fft2", "centred_ifft2", "centring_phases"]

_IMAGE = (-2, -1)


def centred_fft2(image: Tensor) -> Tensor:
    r"""K-space of an image, with the zero frequency at the centre pixel.

    $$F x = \mathrm{shift}\big(\mathrm{FFT}(\mathrm{shift}^{-1}(x))\big) / \sqrt{HW}$$

    It is unitary: $\lVert F x\rVert = \lVert x\rVert$.

    Args:
        image: Shape (..., H, W), complex or real. The centre pixel is (H // 2, W // 2).

    Returns:
        Same shape as ``image``, complex.

    Example:
        >>> import torch
        >>> image = torch.zeros(4, 4)
        >>> image[2, 2] = 1
        >>> centred_fft2(image)[0]
        tensor([0.2500+0.j, 0.2500+0.j, 0.2500+0.j, 0.2500+0.j])
    """
    k = torch.fft.fft2(torch.fft.ifftshift(image, dim=_IMAGE), norm="ortho")
    return torch.fft.fftshift(k, dim=_IMAGE)


def centred_ifft2(kspace: Tensor) -> Tensor:
    r"""Image of a k-space: the inverse, and adjoint, of `centred_fft2`.

    Args:
        kspace: Shape (..., H, W), with the zero frequency at (H // 2, W // 2).

    Returns:
        Same shape as ``kspace``, complex.

    Example:
        >>> import torch
        >>> image = torch.randn(5, 6)
        >>> torch.allclose(centred_ifft2(centred_fft2(image)).real, image, atol=1e-6)
        True
    """
    x = torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=_IMAGE), norm="ortho")
    return torch.fft.fftshift(x, dim=_IMAGE)


def centring_phases(size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    r"""Phases that turn a plain FFT along one axis into a centred one, without moving data.

    With $c = \lfloor N/2 \rfloor$,

    $$\sum_n x_n e^{-2\pi i (k-c)(n-c)/N} = e^{2\pi i c(k-c)/N} \sum_n \big(x_n e^{2\pi i cn/N}\big) e^{-2\pi i kn/N}.$$

    For an even $N$ both are alternating signs.

    Args:
        size: The number of samples $N$.
        dtype: A complex type.
        device: Device of the phases.

    Returns:
        The factors for the image and for the k-space, each of shape (N,).

    Example:
        >>> import torch
        >>> image, kspace = centring_phases(4, torch.complex64)
        >>> kspace.real
        tensor([ 1., -1.,  1., -1.])
    """
    c, n = size // 2, torch.arange(size)
    angles = (torch.stack([c * n, c * (n - c)]) % size).double() * (2 * torch.pi / size)  # exact before the division
    image, kspace = torch.polar(torch.ones_like(angles), angles).to(device, dtype)
    return image, kspace


def as_channels(image: Tensor) -> Tensor:
    """Real and imaginary part of complex images as two channels, the input of a denoiser.

    Args:
        image: Shape (N, H, W), complex.

    Returns:
        Shape (N, 2, H, W), real.
    """
    return torch.stack([image.real, image.imag], dim=1)


def as_complex(channels: Tensor) -> Tensor:
    """Complex images from two channels, the inverse of `as_channels`.

    Args:
        channels: Shape (N, 2, H, W), real. Half precision becomes fp32.

    Returns:
        Shape (N, H, W), complex.

    Example:
        >>> import torch
        >>> as_complex(torch.tensor([[[[1.0]], [[2.0]]]], dtype=torch.bfloat16))
        tensor([[[1.+2.j]]])
    """
    wide = channels if channels.dtype == torch.float64 else channels.float()
    return torch.complex(wide[:, 0], wide[:, 1])
