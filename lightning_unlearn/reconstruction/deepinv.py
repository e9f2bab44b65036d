"""Adapter from deepinv physics to the operators of unrolled networks."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_unlearn.functional.reconstruction.fourier import as_channels, as_complex
from lightning_unlearn.reconstruction.operators import LinearOperator

__all__ = ["from_deepinv"]


class _Physics(Protocol):
    def A(self, x: Tensor) -> Tensor: ...

    def A_adjoint(self, y: Tensor) -> Tensor: ...

    def to(self, device: Any) -> Any: ...


def from_deepinv(physics: _Physics) -> LinearOperator:
    """An operator that wraps a deepinv physics, without a dependency on deepinv.

    deepinv represents real and imaginary part as two channels, of images (B, 2, H, W) and of measurements (B, 2, ...).
    Here both are complex: (B, H, W) and (B, ...). Measurements without such channels are passed unchanged. Noise models
    of the physics are ignored.

    Args:
        physics: A linear physics of images with two channels, such as ``deepinv.physics.MultiCoilMRI``.

    Returns:
        An operator. If the physics holds a value for each image of a batch, it is called once for each copy of the
        batch.

    Raises:
        TypeError: If ``physics`` has no ``A`` and ``A_adjoint``.

    Example:
        >>> import torch
        >>> class Identity(torch.nn.Module):
        ...     def A(self, x):
        ...         return x
        ...
        ...     def A_adjoint(self, y):
        ...         return y
        >>> from_deepinv(Identity()).A(torch.ones(1, 1, 1, dtype=torch.complex64))
        tensor([[[1.+0.j]]])

    References:
        Tachella et al., *DeepInverse: A Python package for solving imaging inverse problems with deep learning*,
        arXiv:2505.20160.
    """
    missing = [name for name in ("A", "A_adjoint") if not callable(getattr(physics, name, None))]
    if missing:
        raise TypeError(
            f"from_deepinv needs a linear physics, but {type(physics).__name__} has no {' and no '.join(missing)}. "
            "Pass a deepinv.physics.LinearPhysics, such as MultiCoilMRI."
        )
    return _DeepInvOperator(physics, 1)


class _DeepInvOperator:
    """A physics, called once for each copy of its batch."""

    def __init__(self, physics: _Physics, copies: int) -> None:
        self.physics, self.copies = physics, copies

    def A(self, image: Tensor) -> Tensor:
        return torch.cat([_complex(self.physics.A(as_channels(rows))) for rows in self._split(image)])

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        return torch.cat([as_complex(self.physics.A_adjoint(_channels(y))) for y in self._split(measurement)])

    def normal(self, image: Tensor) -> Tensor:
        rows = [self.physics.A_adjoint(self.physics.A(as_channels(x))) for x in self._split(image)]
        return torch.cat([as_complex(x) for x in rows])

    def repeated(self, n: int) -> LinearOperator:
        return _DeepInvOperator(self.physics, self.copies * n)

    def to(self, device: torch.device | str) -> LinearOperator:
        return _DeepInvOperator(self.physics.to(device), self.copies)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        if len(rows) % self.copies:
            raise ValueError(
                f"This operator is for {self.copies} copies of a batch, but got {len(rows)} images, no multiple of it."
            )
        return rows.chunk(self.copies)


def _complex(measurement: Tensor) -> Tensor:
    """Measurements with two channels as complex ones; others unchanged."""
    paired = not measurement.is_complex() and measurement.ndim > 2 and measurement.shape[1] == 2
    return as_complex(measurement) if paired else measurement


def _channels(measurement: Tensor) -> Tensor:
    """The inverse of `_complex`, except for complex measurements that have two channels themselves."""
    return as_channels(measurement) if measurement.is_complex() else measurement
