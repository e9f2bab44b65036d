"""Noise of Fisher forgetting."""

from __future__ import annotations

from torch import Tensor

__all__ = ["fisher_forgetting"]


def fisher_forgetting(
    weight: Tensor,
    fisher: Tensor,
    noise: Tensor,
    *,
    alpha: float,
    classes: int,
    forget_class: int | None = None,
    output: bool | None = None,
) -> Tensor:
    r"""Add the noise of Fisher forgetting to a weight.

    .. math:: \mu + \sqrt{v}\, \epsilon, \quad v = \alpha \min\big((F + 10^{-8})^{-1}, c\big)

    The variance is limited by :math:`c = 10^3`, or :math:`10^2` for the output layer, and averaged over the second
    dimension. If a whole class is forgotten, its row of the output layer has :math:`\mu = 0` and
    :math:`v = 10^{-4}`. Then the variance of the output layer and of vectors (biases, batch normalization) is
    multiplied by 10.

    Args:
        weight: The weight, which is :math:`\mu` in all other cases.
        fisher: Diagonal of the Fisher matrix :math:`F` of the retain rows, of the same shape.
        noise: :math:`\epsilon`, standard normal, of the same shape.
        alpha: Scale of the variance :math:`\alpha`.
        classes: Number of classes.
        forget_class: The class that is forgotten as a whole; ``None`` for individual rows.
        output: Whether the weight belongs to the output layer. By default, as in the released code, it does if its
            first dimension is the number of classes.

    Returns:
        The new weight.

    Example:
        >>> import torch
        >>> fisher_forgetting(torch.zeros(3), torch.tensor([0.0, 0.01, 1.0]), torch.ones(3), alpha=1e-6, classes=9)
        tensor([0.1000, 0.0316, 0.0032])

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks*,
        arXiv:1911.04933.
    """
    if output is None:
        output = weight.dim() > 0 and len(weight) == classes
    variance = alpha * (1 / (fisher + 1e-8)).clamp(max=1e2 if output else 1e3)
    if variance.dim() > 1:
        variance = variance.mean(1, keepdim=True).expand_as(weight).clone()
    mean = weight
    if output and forget_class is not None:
        mean = weight.clone()
        mean[forget_class] = 0
        variance[forget_class] = 1e-4
    if output or weight.dim() == 1:
        variance = 10 * variance
    return mean + variance.sqrt() * noise
