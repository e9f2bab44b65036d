"""Multi-coil MRI as a linear operator."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_unlearn.functional.reconstruction.fourier import centring_phases

__all__ = ["LinearOperator", "MultiCoilMRI"]


@runtime_checkable
class LinearOperator(Protocol):
    """Linear map from images to measurements, the interface that unrolled networks use."""

    def A(self, image: Tensor) -> Tensor:
        """Measurements of images of shape (B, H, W)."""

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Images (B, H, W) obtained from measurements by the adjoint."""

    def normal(self, image: Tensor) -> Tensor:
        """The adjoint of the measurements of images."""

    def repeated(self, n: int) -> LinearOperator:
        """The operator for ``n`` copies of a batch, in the order (n, B)."""

    def to(self, device: torch.device | str) -> LinearOperator:
        """The operator on a device."""


class MultiCoilMRI:
    r"""Multi-coil MRI: masked Fourier transforms of the image that each coil sees.

    $$A x = \{ M F (S_c x) \}_c \qquad A^H k = \sum_c \bar S_c F^H (M k_c)$$

    $F$ is the centred, orthonormal transform. If $\sum_c |S_c|^2 \le 1$, then $0 \le A^H A \le I$.

    The shifts of the centred transform are phases that are multiplied into maps and mask once, so that no call has to
    move data for them. With a column mask, the transforms along the columns cancel in `normal`, which then only needs
    one-dimensional transforms along the rows.

    Args:
        maps: The coils' sensitivities $S_c$. Shape (B, C, H, W), or (1, C, H, W) for all images; complex.
        mask: The measured columns $M$. Shape (B, 1, 1, W), or (1, 1, 1, W) or (W,) for all images; boolean, or real
            weights of the measurements. A mask of shape (B, 1, H, W) selects single points.

    Raises:
        ValueError: If the shapes are incompatible, or ``maps`` is real.

    Example:
        >>> import torch
        >>> maps = torch.ones(1, 1, 4, 4, dtype=torch.complex64)
        >>> operator = MultiCoilMRI(maps, torch.tensor([False, True, True, True]))
        >>> operator.A(torch.ones(1, 4, 4, dtype=torch.complex64)).abs()[0, 0, 2]
        tensor([0., 0., 4., 0.])
    """

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        _check(maps, mask)
        self.maps, self.mask = maps, mask.to(maps.device)
        self.copies = 1
        """How often the batch of the maps or masks is repeated."""
        (height, height_k), (width, width_k) = (centring_phases(n, maps.dtype, maps.device) for n in maps.shape[-2:])
        # Add a leading axis for the copies of a batch.
        self._maps = (maps * (height[:, None] * width))[None]
        self._conjugate = self._maps.conj().resolve_conj()
        self._mask = (self.mask * (height_k[:, None] * width_k))[None]
        self._unmask = self._mask.conj().resolve_conj()
        self._squared = self.mask.to(maps.real.dtype).square()[None]
        self._axes = (-1,) if mask.shape[-2] == 1 else (-2, -1)
        self._batch = max(len(maps), len(mask))

    @property
    def rows(self) -> int:
        """Number of images that this operator takes; 1 if maps and mask work for any number."""
        return self.copies * self._batch if self._batch > 1 else 1

    def A(self, image: Tensor) -> Tensor:
        """Measure images.

        Args:
            image: Shape (B, H, W), complex.

        Returns:
            K-space with zeros where nothing is measured. Shape (B, C, H, W).
        """
        return torch.fft.fft2(self._coils(image), norm="ortho").mul_(self._mask).flatten(0, 1)

    def A_adjoint(self, kspace: Tensor) -> Tensor:
        """The coil-combined, zero-filled image of measurements.

        Args:
            kspace: Shape (B, C, H, W), complex. Entries outside the mask are not read.

        Returns:
            Shape (B, H, W).
        """
        coils = torch.fft.ifft2(self._split(kspace) * self._unmask, norm="ortho")
        return coils.mul_(self._conjugate).sum(2).flatten(0, 1)

    def normal(self, image: Tensor) -> Tensor:
        """`A` and `A_adjoint` in one pass.

        Args:
            image: Shape (B, H, W), complex.

        Returns:
            Shape (B, H, W).
        """
        coils = torch.fft.fftn(self._coils(image), dim=self._axes, norm="ortho").mul_(self._squared)
        coils = torch.fft.ifftn(coils, dim=self._axes, norm="ortho").mul_(self._conjugate)
        return coils.sum(2).flatten(0, 1)

    def with_mask(self, mask: Tensor) -> MultiCoilMRI:
        """The operator with the same coils and another mask."""
        return MultiCoilMRI(self.maps, mask).repeated(self.copies)

    def repeated(self, n: int) -> MultiCoilMRI:
        """The operator for ``n`` copies of each image, in the order (n, B). It does not hold copies itself."""
        other = object.__new__(MultiCoilMRI)
        other.__dict__.update(self.__dict__)
        other.copies = self.copies * n
        return other

    def to(self, device: torch.device | str) -> MultiCoilMRI:
        """The operator on a device."""
        return MultiCoilMRI(self.maps.to(device), self.mask.to(device)).repeated(self.copies)

    def _coils(self, image: Tensor) -> Tensor:
        return self._split(image)[:, :, None] * self._maps

    def _split(self, rows: Tensor) -> Tensor:
        """Rows as (copies, batch of the maps or masks, ...)."""
        if self.rows not in (1, len(rows)):
            raise ValueError(
                f"This operator is for {self.rows} images, but got {len(rows)}. Pass as many, or repeated(n) for n "
                "copies of each."
            )
        return rows.unflatten(0, (-1, self._batch))


def _check(maps: Tensor, mask: Tensor) -> None:
    if maps.ndim != 4 or not maps.is_complex():
        raise ValueError(
            f"maps must be complex and of shape (B, C, H, W), but got {maps.dtype} of shape {tuple(maps.shape)}. Use "
            "torch.view_as_complex on real and imaginary parts, and maps[None] on those of a single image."
        )
    height, width = maps.shape[-2:]
    if mask.ndim != 4 or mask.shape[1:] not in ((1, 1, width), (1, height, width)):
        raise ValueError(
            f"mask must be of shape (B, 1, 1, W) or (B, 1, H, W) with (H, W) = {(height, width)}, but got "
            f"{tuple(mask.shape)}. Make it on the grid of the maps."
        )
    if len(mask) != len(maps) and 1 not in (len(mask), len(maps)):
        raise ValueError(
            f"maps are of {len(maps)} images and masks of {len(mask)}. Pass one for each image, or one for all."
        )
