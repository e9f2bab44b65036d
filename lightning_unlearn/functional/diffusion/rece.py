"""Closed-form attack of RECE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["closed_form_attack"]


def closed_form_attack(
    concepts: Tensor, weights: Sequence[Tensor], originals: Sequence[Tensor], *, lamb: float = 0.1
) -> Tensor:
    r"""Text states for which edited layers give the outputs of the original layers for a concept.

    $$c' = \arg\min_x \sum_i \|W_i x - W_i^0 c\|^2 + \lambda \|x\|^2
    = \Big(\lambda I + \sum_i W_i^\top W_i\Big)^{-1} \sum_i W_i^\top W_i^0\, c$$

    Computed in double precision.

    Args:
        concepts: Text states $c$, shape ``(N, D)``.
        weights: Edited key and value weights $W_i$, each of shape ``(out_i, D)``.
        originals: The same weights before the edit, $W_i^0$.
        lamb: $\lambda \ge 0$; keeps $c'$ short. For values above 0, the solution is always unique.

    Returns:
        $c'$, shape ``(N, D)``, fp64.

    Raises:
        ValueError: If $\lambda$ is negative, there are no weights or a different number of originals, or $\lambda$ is 0
            and the weights do not determine $c'$.

    Example:
        >>> c, w = torch.tensor([[1.0, 2.0]]), torch.eye(2)
        >>> closed_form_attack(c, [0.5 * w], [w], lamb=0.0)
        tensor([[2., 4.]], dtype=torch.float64)

    References:
        Gong et al., *Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models*, arXiv:2407.12383.
    """
    if not lamb >= 0:
        raise ValueError(f"lamb must be at least 0, but got {lamb}.")
    if not weights or len(weights) != len(originals):
        raise ValueError(
            f"Each edited weight needs its original, but got {len(weights)} weights and {len(originals)} originals."
        )
    c = concepts.double()
    gram = lamb * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    cross = torch.zeros_like(gram)
    for weight, original in zip(weights, originals, strict=True):
        w = weight.double()
        gram += w.mT @ w
        cross += w.mT @ original.double()
    rank = int(torch.linalg.matrix_rank(gram, hermitian=True)) if lamb == 0 else len(gram)
    if rank < len(gram):
        raise ValueError(
            f"The weights see {rank} of {len(gram)} directions of a text state, so with lamb=0 it is not determined. "
            "Pass a lamb greater than 0."
        )
    return torch.linalg.solve(gram, cross @ c.mT).mT
