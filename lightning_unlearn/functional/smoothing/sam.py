"""Perturbations of sharpness-aware minimization."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["asam_perturbation", "sam_perturbation"]

_EPSILON = 1e-12


def sam_perturbation(gradient: Tensor, rho: float, norm: Tensor | None = None) -> Tensor:
    r"""The step of length $\rho$ along which a loss increases most, to first order.

    $$\epsilon = \rho\, \frac{g}{\lVert g \rVert_2}$$

    Args:
        gradient: Gradient $g$, any shape.
        rho: Length $\rho$.
        norm: $\lVert g \rVert_2$, if ``gradient`` is one of several tensors that share it.

    Returns:
        Same shape as ``gradient``.

    Example:
        >>> sam_perturbation(torch.tensor([3.0, 4.0]), rho=0.5)
        tensor([0.3000, 0.4000])

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, arXiv:2010.01412.
    """
    norm = torch.linalg.vector_norm(gradient) if norm is None else norm
    return gradient * (rho / (norm + _EPSILON))


def asam_perturbation(gradient: Tensor, weight: Tensor, rho: float, norm: Tensor | None = None) -> Tensor:
    r"""The same step in units of each weight, which is invariant to rescaling of weights that keeps the function.

    $$\epsilon = \rho\, \frac{T^2 g}{\lVert T g \rVert_2}, \qquad T = |\theta|$$

    Args:
        gradient: Gradient $g$, any shape.
        weight: Weights $\theta$, of the same shape.
        rho: Length $\rho$ of $T^{-1} \epsilon$.
        norm: $\lVert T g \rVert_2$, if ``gradient`` is one of several tensors that share it.

    Returns:
        Same shape as ``gradient``.

    Example:
        >>> asam_perturbation(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]), rho=0.5)
        tensor([1., 0.])

    References:
        Kwon et al., *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
        Networks*, arXiv:2102.11600.
    """
    scaled = weight.abs() * gradient
    norm = torch.linalg.vector_norm(scaled) if norm is None else norm
    return weight.abs() * scaled * (rho / (norm + _EPSILON))
