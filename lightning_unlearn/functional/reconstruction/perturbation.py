"""Norms, projections and ascent steps of per-image perturbations."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ascent_step", "l2_norms", "project_l2", "project_linf"]


def l2_norms(rows: Tensor) -> Tensor:
    """The Euclidean norm of each row, in a shape that broadcasts.

    Args:
        rows: Shape ``(B, ...)``, real or complex.

    Returns:
        Shape ``(B, 1, ...)``, real.
    """
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).view(-1, *[1] * (rows.ndim - 1))


def project_linf(rows: Tensor, radius: float) -> Tensor:
    r"""The nearest perturbations whose real and imaginary parts are in $[-\epsilon, \epsilon]$.

    Args:
        rows: Shape ``(B, ...)``, complex.
        radius: $\epsilon$.

    Example:
        >>> project_linf(torch.tensor([3 - 0.1j]), 0.5)
        tensor([0.5000-0.1000j])
    """
    return torch.view_as_complex(torch.view_as_real(rows).clamp(-radius, radius))


def project_l2(rows: Tensor, radius: Tensor | float) -> Tensor:
    r"""The nearest perturbations whose norm is at most $\epsilon$, row by row.

    Args:
        rows: Shape ``(B, ...)``, real or complex.
        radius: $\epsilon$; a number, or a tensor of shape ``(B, 1, ...)``.

    Example:
        >>> project_l2(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000], [0.3000, 0.4000]])
    """
    norms = l2_norms(rows)
    return rows * (radius / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)


def ascent_step(gradient: Tensor, norm: str) -> Tensor:
    r"""The direction of steepest ascent in a ball: the signs of real and imaginary parts, or the unit gradient.

    Args:
        gradient: Derivatives with respect to the real and the imaginary part as one complex number, in torch's
            convention; shape ``(B, ...)``. Non-finite entries have no direction.
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        Same shape as ``gradient``.
    """
    gradient = torch.where(gradient.abs().isfinite(), gradient, 0)
    if norm == "linf":
        return torch.view_as_complex(torch.view_as_real(gradient).sign())
    return gradient / l2_norms(gradient).clamp(min=torch.finfo(gradient.real.dtype).tiny)
