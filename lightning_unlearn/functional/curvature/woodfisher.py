"""Inverse-vector product of the damped empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["woodfisher"]


@torch.no_grad()
def woodfisher(gradients: Iterable[Tensor], vector: Sequence[Tensor], *, damping: float) -> list[Tensor]:
    r"""Inverse-Fisher-vector product, without the matrix.

    .. math:: \hat H^{-1} v, \quad \hat H = \lambda I + \frac{1}{M} \sum_j g_j g_j^\top

    WoodFisher builds the inverse by :math:`M` rank-one updates; the result equals one solve of an
    :math:`M \times M` system (Woodbury), done here by a Cholesky factorization in fp64:

    .. math:: \hat H^{-1} v = \lambda^{-1}\big[v - G^\top (\lambda M I + G G^\top)^{-1} G v\big]

    It is exact for the full matrix over all weights. The weights come in blocks, and only products of a block's
    gradients are ever computed. For the block-diagonal variant, call it once per block.

    Args:
        gradients: Per-sample gradients :math:`G`, one tensor of shape ``(M, d_i)`` for each block of weights. They are
            read twice, one block at a time, so blocks may be computed on the fly.
        vector: The vector :math:`v`, one tensor of shape ``(d_i,)`` for each block.
        damping: :math:`\lambda > 0`.

    Returns:
        One tensor of shape ``(d_i,)`` for each block, in the type of ``vector``.

    Raises:
        ValueError: If the damping is not positive, or blocks of gradients and of the vector don't correspond.

    Example:
        >>> import torch
        >>> woodfisher([torch.tensor([[1.0, 0.0]])], [torch.tensor([2.0, 2.0])], damping=1.0)
        [tensor([1., 2.])]

    References:
        Singh and Alistarh, *WoodFisher: Efficient Second-Order Approximation for Neural Network Compression*,
        arXiv:2004.14340.
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, but got {damping}: fewer samples than weights leave H singular.")
    gram = products = None
    for g, v in zip(gradients, vector, strict=True):
        g, v = g.double(), v.double()
        gram = g @ g.T if gram is None else gram + g @ g.T
        products = g @ v if products is None else products + g @ v
    if gram is None or products is None:
        raise ValueError("Expected at least one block of weights, but got none.")
    gram.diagonal().add_(damping * len(gram))
    weights = torch.cholesky_solve(products.unsqueeze(1), torch.linalg.cholesky(gram)).squeeze(1)
    return [
        ((v.double() - g.double().T @ weights) / damping).to(v.dtype) for g, v in zip(gradients, vector, strict=True)
    ]
