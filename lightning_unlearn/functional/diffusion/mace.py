"""Attention loss, noise levels, fusion and prompts of MACE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional.diffusion.forget_me_not import attention_norm

__all__ = ["focal_density", "fusion_maps", "masked_attention_norm", "replaced"]


def masked_attention_norm(
    probabilities: Sequence[Tensor], positions: Tensor, masks: Tensor | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    r"""Attention of the image positions in a mask to the given tokens.

    $$\sum_l \Big(\sum_{h,\, q \in M,\, k \in P} A_{lhqk}^2\Big)^{1/2}$$

    This is one norm for each layer $l$, as in the authors' code. A layer's positions are the pixels of the latents,
    halved and rounded up until their number matches; the mask is resized to them by nearest neighbour.

    Args:
        probabilities: $A_l$ of each layer, shape ``(B, heads, queries, L)``; queries and heads may differ.
        positions: The tokens $P$, boolean, shape ``(B, L)``.
        masks: $M$, the positions with values above 0.5, shape ``(B, 1, H, W)``; the whole image if not given.
        size: Height and width of the latents, needed with masks.

    Returns:
        Shape ``(B,)``, fp32.

    Raises:
        ValueError: If there is no layer, or masks are given without a size.

    Example:
        >>> attention = torch.tensor([[[[0.3, 0.7], [0.4, 0.6]]]])  # one head, two places, two tokens
        >>> first = torch.tensor([[True, False]])
        >>> masked_attention_norm([attention, attention], first)
        tensor([1.])
        >>> masked_attention_norm([attention], first, torch.tensor([[[[0.0, 1.0]]]]), size=(1, 2))
        tensor([0.4000])

    References:
        Lu et al., *MACE: Mass Concept Erasure in Diffusion Models*, arXiv:2403.06135.
    """
    if not probabilities:
        raise ValueError("masked_attention_norm needs the probabilities of at least one layer, but got none.")
    if masks is None:
        return torch.stack([attention_norm([layer], positions) for layer in probabilities]).sum(0)
    if size is None:
        raise ValueError("With masks, give size=(height, width) of the latents, whose pixels the queries stand for.")
    norms = []
    for layer in probabilities:
        within = F.interpolate(masks.float(), size=_grid(layer.shape[2], size), mode="nearest").flatten(1) > 0.5
        norms.append(attention_norm([layer * within[:, None, :, None]], positions))
    return torch.stack(norms).sum(0)


def _grid(queries: int, size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    while height * width > queries:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != queries:
        raise ValueError(f"{queries} queries are no latents of {size[0]} by {size[1]}, halved some times.")
    return height, width


def focal_density(levels: int, low: float = 200.0, high: float = 400.0, temperature: float = 0.05) -> Tensor:
    r"""Noise levels at which a concept forms: $p(t) \propto \sigma(\beta (t - t_1)) - \sigma(\beta (t - t_2))$.

    Args:
        levels: Number $T$ of noise levels; $t_1$ and $t_2$ refer to 1000 levels.
        low: $t_1$.
        high: $t_2$.
        temperature: $\beta$.

    Returns:
        Probabilities, shape ``(T,)``, fp64.

    Example:
        >>> p = focal_density(1000)
        >>> int(p.argmax()), round(float(p[200:401].sum()), 2)
        (300, 0.86)

    References:
        Lu et al., arXiv:2403.06135.
    """
    t = torch.arange(levels, dtype=torch.float64) * (1000 / levels)
    weights = torch.sigmoid(temperature * (t - low)) - torch.sigmoid(temperature * (t - high))
    return weights / weights.sum()


def fusion_maps(
    contexts: Sequence[Tensor], preserve: Tensor | None = None, *, preserve_scale: float = 1.0, lamb: float = 1000.0
) -> tuple[list[Tensor], Tensor]:
    r"""Matrices with which MACE fuses the adapters $\Delta_i$ of several concepts into one weight.

    $$W' = \arg\min_V \sum_i \sum_{c \in C_i} \|V c - (W + \Delta_i) c\|^2 + s_p \sum_{c \in P} \|V c - W_0 c\|^2
    + \lambda \|V - W\|_F^2 = W + \sum_i \Delta_i R_i + (W_0 - W) K$$

    with $A = \sum_i C_i^\top C_i + s_p P^\top P + \lambda I$, $R_i = C_i^\top C_i A^{-1}$ and
    $K = s_p P^\top P A^{-1}$. None of this depends on a layer. Computed in double precision.

    Args:
        contexts: Text states $C_i$ of the prompts of each concept, shape ``(N_i, D)``.
        preserve: Text states $P$ whose outputs should remain those of $W_0$, shape ``(M, D)``.
        preserve_scale: $s_p \ge 0$.
        lamb: $\lambda > 0$, the weight of staying close to the weights without adapters.

    Returns:
        The matrices $R_i$, and $K$, each of shape ``(D, D)``, fp64.

    Raises:
        ValueError: If there is no concept, or $\lambda$ is not positive: $A$ could be singular.

    Example:
        >>> (first, second), _ = fusion_maps([torch.eye(2)[:1], torch.eye(2)[1:]], lamb=1.0)
        >>> first  # the adapter acts, by half, on what is of its own concept
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]], dtype=torch.float64)

    References:
        Lu et al., *MACE: Mass Concept Erasure in Diffusion Models*, arXiv:2403.06135.
    """
    if not contexts:
        raise ValueError("fusion_maps needs text states of at least one concept, but got none.")
    if not lamb > 0:
        raise ValueError(f"lamb must be greater than 0, but got {lamb}: few prompts leave the equations singular.")
    grams = [states.double().mT @ states.double() for states in contexts]
    kept = torch.zeros_like(grams[0]) if preserve is None else preserve_scale * preserve.double().mT @ preserve.double()
    a = sum(grams, kept) + lamb * torch.eye(len(kept), dtype=kept.dtype, device=kept.device)
    solved = torch.linalg.solve(a, torch.stack([*grams, kept]), left=False)
    return list(solved[:-1]), solved[-1]


def replaced(ids: Sequence[int], old: Sequence[int], new: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Replace a concept in a prompt.

    Args:
        ids: Tokens, padded with the last of them.
        old: Tokens of the concept.
        new: Tokens that replace it, of any number.

    Returns:
        The new tokens, the same number as before, and pairs of positions of the same token in ``ids`` and in the new
        tokens.

    Example:
        >>> replaced([1, 5, 6, 3, 9, 9], [5, 6], [7])
        ([1, 7, 3, 9, 9, 9], [(0, 0), (3, 2), (4, 3), (5, 4)])
    """
    tokens: list[int] = []
    places: list[tuple[int, int]] = []
    i = 0
    while i < len(ids):
        if list(ids[i : i + len(old)]) == list(old):
            tokens += new
            i += len(old)
        else:
            places.append((i, len(tokens)))
            tokens.append(ids[i])
            i += 1
    size = len(ids)
    tokens = [*tokens, *[ids[-1]] * (size - len(tokens))][:size]
    return tokens, [(before, after) for before, after in places if after < size]
