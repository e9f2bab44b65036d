"""Penalty on the curvature along the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_unlearn.functional.smoothing.gradient_penalty import inner_product, unit_vector

__all__ = ["Product", "curvature_penalty", "curvature_penalty_gradient"]

Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Maps a vector to its product with a Hessian."""


def curvature_penalty(displaced: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    r"""Change of the gradient over a short step along itself.

    .. math:: C = \| d \|_2, \quad d = \nabla L(\theta + \mu v) - \nabla L(\theta), \quad
       v = \nabla L(\theta) / \|\nabla L(\theta)\|_2

    It is :math:`\mu \|Hv\|_2 + O(\mu^2)`.

    Args:
        displaced: :math:`\nabla L(\theta + \mu v)`, one tensor for each weight.
        gradients: :math:`\nabla L(\theta)`.

    Returns:
        :math:`C`, a scalar, and :math:`u = d / \|d\|_2`, both without a graph.

    Example:
        >>> import torch
        >>> diagonal, weights, mu = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0]), 0.01
        >>> value, u = curvature_penalty([diagonal * (weights + mu * torch.tensor([0.0, 1.0]))], [diagonal * weights])
        >>> value, u  # 4 mu
        (tensor(0.0400), [tensor([0., 1.])])

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
        Moosavi-Dezfooli et al., *Robustness via curvature regularization, and vice versa*, arXiv:1811.09716.
    """
    change = [(a - b).detach() for a, b in zip(displaced, gradients, strict=True)]
    return inner_product(change, change).sqrt(), unit_vector(change)


def curvature_penalty_gradient(
    gradients: Sequence[Tensor],
    u: Sequence[Tensor],
    hessian: Product,
    displaced_hessian: Product,
    *,
    mu: float,
    detach: bool = True,
) -> list[Tensor]:
    r"""Gradient of `curvature_penalty`, from two Hessian-vector products.

    With :math:`v` held constant, as is usual, it is :math:`[H(\theta + \mu v) - H(\theta)]\, u`, which is 0 for a
    quadratic loss. In the full gradient of the equation, :math:`v` turns with the weights. It needs no third
    derivative:

    .. math:: a + H(\theta) \Big[ \frac{\mu}{\|\nabla L\|_2} (I - v v^\top)\, a - u \Big], \quad
       a = H(\theta + \mu v)\, u

    Its second term grows without bound as the gradient vanishes, where :math:`v` is not defined.

    Args:
        gradients: :math:`\nabla L(\theta)`, one tensor for each weight.
        u: Direction in which the gradient changes.
        hessian: Products with :math:`H(\theta)`.
        displaced_hessian: Products with :math:`H(\theta + \mu v)`.
        mu: Length of the step :math:`\mu`.
        detach: Whether :math:`v` is held constant.

    Returns:
        One tensor for each weight.

    Example:
        >>> import torch
        >>> diagonal = torch.tensor([1.0, 4.0])
        >>> product = lambda x: [diagonal * x[0]]
        >>> curvature_penalty_gradient([torch.tensor([1.0, 4.0])], [torch.tensor([0.0, 1.0])], product, product, mu=0.1)
        [tensor([0., 0.])]
    """
    there = displaced_hessian(u)
    here = [-x for x in u]
    if not detach:
        v = unit_vector(gradients)
        along = inner_product(v, there).item()
        norm = inner_product(gradients, gradients).sqrt().item()
        scale = mu / norm if norm > 0 else 0.0
        here = [x + scale * (a - along * b) for x, a, b in zip(here, there, v, strict=True)]
    return [a + b for a, b in zip(there, hessian(here), strict=True)]
