"""Latent anchors and permeability of SPM."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["latent_anchors", "permeability"]


def latent_anchors(concept: Tensor, count: int, generator: torch.Generator) -> Tensor:
    r"""Sample anchor text embeddings, with higher probability farther from the concept.

    Gaussian directions are accepted with probability $\min(1,\, 1 - \cos(a, c))$, over all elements, and scaled to the
    norm of the concept's states times a factor from $U[0.8, 1.2)$.

    Args:
        concept: Text states $c$, shape ``(L, D)``.
        count: Number of anchors.
        generator: Generator on the CPU.

    Returns:
        Shape ``(count, L, D)``, without gradient.

    Raises:
        ValueError: If the states are 0 and therefore have no direction.

    Example:
        >>> c = torch.tensor([[3.0, 4.0]])
        >>> lengths = latent_anchors(c, 2, torch.Generator().manual_seed(0)).flatten(1).norm(dim=1)
        >>> bool(((lengths >= 4.0) & (lengths <= 6.0)).all())
        True

    References:
        Lyu et al., *One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications*,
        arXiv:2312.16145; the distribution is that of the authors' code.
    """
    length = concept.detach().float().norm()
    if not length > 0:
        raise ValueError("The concept's text states are all 0, so nothing is near to or far from them.")
    direction = concept.detach().float().cpu() / length.cpu()
    anchors: list[Tensor] = []
    while len(anchors) < count:
        anchor = torch.randn(concept.shape, generator=generator)
        anchor /= anchor.norm()
        draw, factor = torch.rand(2, generator=generator)
        if draw < 1 - (anchor * direction).sum():
            anchors.append(anchor * (0.8 + 0.4 * factor))
    return torch.stack(anchors).to(concept) * length


def permeability(prompt: Tensor, concept: Tensor, prompt_ids: Collection[int], concept_ids: Collection[int]) -> Tensor:
    r"""Scale of an adapter for a prompt ("facilitated transport").

    $$\gamma = \max\Big(\cos(c, c_p),\; \frac{|T \cap T_p|}{|T_p|}\Big)$$

    where $c$ are the text states of the prompt and $c_p$ those of the concept, over all elements, and $T$, $T_p$ the
    sets of their tokens. States of start and padding have much in common, so the cosine is high for most prompts.

    Args:
        prompt: Text states $c$, shape ``(L, D)``.
        concept: Text states $c_p$, shape ``(L, D)``.
        prompt_ids: Tokens of the prompt, without start, end and padding.
        concept_ids: Tokens of the concept, likewise.

    Returns:
        $\gamma$ in [0, 1], a scalar; 1 for the concept itself.

    Raises:
        ValueError: If the concept has no tokens.

    Example:
        >>> states = torch.eye(2)
        >>> permeability(states[:1], states[1:], {5, 6}, {6, 7})
        tensor(0.5000)

    References:
        Lyu et al., arXiv:2312.16145.
    """
    tokens = set(concept_ids)
    if not tokens:
        raise ValueError("The concept has no tokens: it is the empty prompt. Give the words that were erased.")
    cosine = F.cosine_similarity(prompt.float().flatten(), concept.float().flatten(), dim=0)
    share = len(tokens & set(prompt_ids)) / len(tokens)
    return cosine.clamp(min=share, max=1)
