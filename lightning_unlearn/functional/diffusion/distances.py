"""Feature distances between paired images and between normal distributions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["feature_distance", "frechet_distance"]


def feature_distance(features: nn.Module, images: Tensor, others: Tensor) -> Tensor:
    r"""Cosine distance $1 - \cos(f(x), f(y))$ between features of paired images, such as those of one prompt and seed.

    It is used where papers report LPIPS, but its values are not comparable with LPIPS.

    Args:
        features: Module that maps a batch to features ``(B, D)``.
        images: Shape ``(B, ...)``.
        others: Same shape.

    Returns:
        Shape ``(B,)``, in [0, 2].

    Raises:
        ValueError: If the batches differ in size.

    Example:
        >>> feature_distance(nn.Identity(), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    if images.shape != others.shape:
        raise ValueError(f"Images are compared in pairs, but have shapes {tuple(images.shape)}, {tuple(others.shape)}.")
    return 1 - torch.cosine_similarity(features(images), features(others), dim=1)


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    r"""Squared Fréchet distance between two normal distributions, which FID applies to features.

    $$\|\mu_1 - \mu_2\|^2 + \operatorname{tr}\Sigma_1 + \operatorname{tr}\Sigma_2
    - 2 \operatorname{tr}\big(\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2}\big)^{1/2}$$

    Computed in double precision; covariances need not have full rank.

    Args:
        mean: $\mu_1$, shape ``(D,)``.
        covariance: $\Sigma_1$, symmetric and positive semidefinite, shape ``(D, D)``.
        other_mean: $\mu_2$, shape ``(D,)``.
        other_covariance: $\Sigma_2$, shape ``(D, D)``.

    Returns:
        Scalar, fp64, at least 0 up to rounding.

    Example:
        >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.tensor([3.0, 4.0]), torch.eye(2))
        tensor(25., dtype=torch.float64)

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*,
        arXiv:1706.08500, eq. 6.
    """
    a, b = covariance.double(), other_covariance.double()
    # The trace is the nuclear norm of the product of the roots: without squaring, rounding errors are not amplified.
    between = torch.linalg.svdvals(_root(a) @ _root(b)).sum()
    return (mean.double() - other_mean.double()).square().sum() + a.trace() + b.trace() - 2 * between


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT
