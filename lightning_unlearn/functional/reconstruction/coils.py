"""Sensitivity maps of receiver coils: simulated, normalised, and estimated from the centre of k-space."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.functional.reconstruction.fourier import centred_ifft2

__all__ = ["birdcage_maps", "maps_from_center", "normalized_maps"]


def birdcage_maps(
    coils: int, height: int, width: int, radius: float = 1.5, dtype: torch.dtype = torch.complex64
) -> Tensor:
    r"""Maps of coils that are arranged in a circle around the image.

    Coil $c$ is at the angle $\vartheta = 2\pi c/C$ on a circle of some radius; the image is the square $[-1, 1)^2$.
    With $x' = x - \rho\cos\vartheta$ and $y' = y - \rho\sin\vartheta$,

    $$S_c \propto \frac{1}{\sqrt{x'^2 + y'^2}}\, e^{i(\mathrm{atan2}(x', -y') - \vartheta)}$$

    with $\sum_c |S_c|^2 = 1$. All coils have the same phase at the centre, as in SigPy's ``birdcage_maps``, which gives
    the same numbers.

    Args:
        coils: The number of coils $C$.
        height: Rows of the image.
        width: Columns of the image.
        radius: $\rho > \sqrt{2}$, so that coils are outside the image.
        dtype: A complex type.

    Returns:
        Shape (C, H, W).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> maps = birdcage_maps(4, 8, 6)
        >>> torch.allclose(maps.abs().square().sum(0), torch.ones(8, 6))
        True
    """
    if min(coils, height, width) < 1 or not radius > 2**0.5:
        raise ValueError(
            "birdcage_maps needs at least one coil, row and column, and a radius above sqrt(2), where coils are "
            f"outside of the image, but got coils={coils}, height={height}, width={width}, radius={radius}."
        )
    angle = (torch.arange(coils, dtype=torch.float64) * (2 * torch.pi / coils))[:, None, None]
    x = (2 * torch.arange(width, dtype=torch.float64) / width - 1) - radius * angle.cos()
    y = (2 * torch.arange(height, dtype=torch.float64) / height - 1)[:, None] - radius * angle.sin()
    maps = torch.polar(1 / torch.hypot(x, y), torch.atan2(x, -y) - angle)
    return normalized_maps(maps).to(dtype)


def normalized_maps(maps: Tensor) -> Tensor:
    r"""Maps with $\sum_c |S_c|^2 = 1$, or 0 where no coil has any signal.

    Then $0 \le A^H A \le I$ for every mask.

    Args:
        maps: Shape (..., C, H, W), complex.

    Returns:
        Same shape as ``maps``.
    """
    norm = torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    return maps / torch.where(norm > 0, norm, 1)


def maps_from_center(kspace: Tensor, lines: int, support: float = 0.05) -> Tensor:
    r"""Maps from the fully sampled centre of k-space: low-resolution images, divided by their norm over coils.

    The centre is weighted by a Hann window, so that maps have no ringing. Phases are relative to those of the image,
    whose own phase is contained in all maps. Unlike ESPIRiT, this needs no eigenvectors, and it is inaccurate where the
    image varies faster than the centre resolves.

    Args:
        kspace: Shape (..., C, H, W), complex. At least the middle ``lines`` columns must be measured.
        lines: Number of columns, and rows, of the centre that is read.
        support: Maps are 0 where the norm over coils is below this fraction of its maximum in the image.

    Returns:
        Normalised maps, in the shape of ``kspace``.

    Raises:
        ValueError: If ``lines`` or ``support`` is out of range.

    Example:
        >>> maps = birdcage_maps(4, 32, 32)
        >>> from lightning_unlearn.functional import centred_fft2
        >>> estimated = maps_from_center(centred_fft2(maps), lines=12)
        >>> bool((estimated - maps)[:, 8:24, 8:24].abs().max() < 0.05)
        True
    """
    height, width = kspace.shape[-2:]
    if not 1 <= lines <= width or not 0 <= support < 1:
        raise ValueError(
            f"lines must be in [1, {width}] and support in [0, 1), but got {lines} and {support}: lines is the number "
            "of columns in the middle that the mask measures."
        )
    window = _centred_hann(height, min(lines, height))[:, None] * _centred_hann(width, lines)
    images = centred_ifft2(kspace * window.to(kspace.device, kspace.real.dtype))
    norm = torch.linalg.vector_norm(images, dim=-3, keepdim=True)
    inside = (norm > 0) & (norm >= support * norm.amax((-2, -1), keepdim=True))
    return torch.where(inside, images / torch.where(inside, norm, 1), 0)


def _centred_hann(size: int, lines: int) -> Tensor:
    """A Hann window over the middle lines, 0 outside. Shape (size,)."""
    distance = (torch.arange(size) - size // 2).double()
    return torch.where(2 * distance.abs() < lines + 1, torch.cos(torch.pi * distance / (lines + 1)).square(), 0)
