"""Penalty on the norm of the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["gradient_penalty", "inner_product", "unit_vector"]


def gradient_penalty(gradients: Sequence[Tensor], direction: Sequence[Tensor] | None = None) -> Tensor:
    r"""Norm of the gradient of a loss, to be minimized: :math:`\|\nabla L\|_2 = \langle \nabla L, v \rangle`.

    With :math:`v = \nabla L / \|\nabla L\|_2` held constant, the inner product has the value of the norm, and its
    gradient :math:`Hv` is that of the norm; if the gradient is 0, both are 0 and not NaN. With several processes,
    :math:`v` is that of the mean gradient, so that the mean of :math:`H_r v` equals the result of one process on all
    rows.

    The released code of the paper adds the norm as a number (``.item()``), which has no gradient: the results published
    for this penalty are those of the loss without it. This is the penalty of the paper's equation.

    Args:
        gradients: :math:`\nabla L`, one tensor for each weight, made with ``create_graph=True``.
        direction: :math:`v`; by default that of these gradients.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: If the gradients have no graph.

    Example:
        >>> import torch
        >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> loss = 0.5 * (torch.tensor([1.0, 4.0]) * w**2).sum()
        >>> gradients = torch.autograd.grad(loss, [w], create_graph=True)
        >>> torch.autograd.grad(gradient_penalty(gradients), [w])  # (1, 16) / sqrt(17)
        (tensor([0.2425, 3.8806]),)

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
        and Beyond*, arXiv:2502.05374.
        Zhao et al., *Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning*,
        arXiv:2202.03599.
    """
    if not any(gradient.requires_grad for gradient in gradients):
        raise ValueError(
            "The gradients carry no graph, so their norm would be a constant, and no penalty. Make them with "
            "torch.autograd.grad(loss, weights, create_graph=True), of a loss that is not linear in the weights."
        )
    return inner_product(gradients, unit_vector(gradients) if direction is None else direction)


def unit_vector(vector: Sequence[Tensor]) -> list[Tensor]:
    r"""A vector over all weights divided by its norm, without a graph; 0 if the vector is 0.

    Args:
        vector: One tensor for each weight.

    Returns:
        One tensor for each weight, with a joint norm of 1.

    Example:
        >>> import torch
        >>> unit_vector([torch.tensor([3.0]), torch.tensor([4.0])])
        [tensor([0.6000]), tensor([0.8000])]
    """
    detached = [v.detach() for v in vector]
    norm = inner_product(detached, detached).sqrt().item()
    return [v / norm if norm > 0 else torch.zeros_like(v) for v in detached]


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Inner product over all weights, a scalar, at least in fp32; a collective call if they are sharded.

    Args:
        first: One tensor for each weight.
        second: One tensor for each weight.

    Returns:
        A scalar, with a graph if the vectors have one.

    Example:
        >>> import torch
        >>> inner_product([torch.ones(2), torch.ones(1)], [torch.ones(2), 3 * torch.ones(1)])
        tensor(5.)
    """
    kind = torch.promote_types(first[0].dtype, torch.float32)
    products = [(a.to(kind) * b.to(kind)).sum() for a, b in zip(first, second, strict=True)]
    return torch.stack([x.full_tensor() if isinstance(x, DTensor) else x for x in products]).sum()
