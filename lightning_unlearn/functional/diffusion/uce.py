"""Unified concept editing (UCE), in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["uce", "uce_map"]


def uce_map(
    concepts: Tensor,
    guides: Tensor,
    preserve: Tensor | None = None,
    *,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    lamb: float = 0.5,
) -> Tensor:
    r"""The matrix $M$ with which UCE edits all key and value layers, $W \leftarrow W + W M$.

    $$M = s_e \sum_i (g_i - c_i)\, c_i^\top A^{-1}, \qquad
    A = s_e \sum_i c_i c_i^\top + s_p \sum_j c_j c_j^\top + \lambda I$$

    Because the new values are the layer's own outputs for the guides, the layer cancels in the normal equations, and
    one solve serves all layers. The rank of $M$, and therefore of the edit, is at most the number of edits. Computed in
    double precision.

    Args:
        concepts: Text states $c_i$ to edit, shape ``(N, D)``.
        guides: Text states $g_i$ of the anchors, shape ``(N, D)``.
        preserve: Text states $c_j$ whose outputs should not change, shape ``(M, D)``.
        erase_scale: $s_e > 0$.
        preserve_scale: $s_p \ge 0$.
        lamb: $\lambda > 0$, the weight of staying close to the old weights.

    Returns:
        Shape ``(D, D)``, fp64.

    Raises:
        ValueError: If $\lambda$ is not positive: $A$ would be singular.

    Example:
        >>> concept, guide = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> uce_map(concept, guide, lamb=1.0)
        tensor([[-0.5000, 0.0000],
                [ 0.5000, 0.0000]], dtype=torch.float64)

    References:
        Gandikota et al., *Unified Concept Editing in Diffusion Models*, arXiv:2308.14761, eq. 7.
    """
    if not lamb > 0:
        raise ValueError(f"lamb must be greater than 0, but got {lamb}: few concepts leave the equations singular.")
    c, g = concepts.double(), guides.double()
    a = erase_scale * c.mT @ c + lamb * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    if preserve is not None and len(preserve):
        a += preserve_scale * preserve.double().mT @ preserve.double()
    return torch.linalg.solve(a, erase_scale * (g - c).mT @ c, left=False)


def uce(
    weight: Tensor,
    concepts: Tensor,
    guides: Tensor,
    preserve: Tensor | None = None,
    *,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    lamb: float = 0.5,
) -> Tensor:
    r"""Weights that give concepts the outputs of their guides, with the least change of other outputs.

    $$\arg\min_W\; s_e \sum_i \|W c_i - W_0 g_i\|^2 + s_p \sum_j \|W c_j - W_0 c_j\|^2 + \lambda \|W - W_0\|_F^2$$

    Args:
        weight: $W_0$, shape ``(out, D)``.
        concepts: As for [`uce_map`][lightning_unlearn.functional.diffusion.uce.uce_map].
        guides: As for ``uce_map``.
        preserve: As for ``uce_map``.
        erase_scale: As for ``uce_map``.
        preserve_scale: As for ``uce_map``.
        lamb: As for ``uce_map``.

    Returns:
        Shape ``(out, D)``, in the type of ``weight``.

    Example:
        >>> uce(torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), lamb=1.0)
        tensor([[0.5000, 0.0000],
                [0.5000, 1.0000]])

    References:
        Gandikota et al., *Unified Concept Editing in Diffusion Models*, arXiv:2308.14761, eq. 7.
    """
    change = uce_map(concepts, guides, preserve, erase_scale=erase_scale, preserve_scale=preserve_scale, lamb=lamb)
    old = weight.double()
    return (old + old @ change).to(weight.dtype)
