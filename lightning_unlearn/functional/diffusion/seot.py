"""Suppression of a concept in the text states of a prompt (SEOT)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["concept_and_end_places", "suppress_eot"]


def suppress_eot(states: Tensor, places: Tensor, *, alpha: float = 1.0, scale: float = 1.0) -> Tensor:
    r"""Soft-weighted regularization of the singular values of text states.

    $$M = U \operatorname{diag}(\sigma)\, V^\top, \qquad \hat\sigma = s\, e^{-\alpha\sigma} \sigma, \qquad
    \hat M = U \operatorname{diag}(\hat\sigma)\, V^\top$$

    $M$ holds the states of the concept and of the end of the prompt, which repeat the concept: its largest singular
    values belong to the concept, and $\sigma e^{-\sigma}$ decreases above 1. Computed in double precision.

    Args:
        states: Text states of one prompt, shape ``(L, D)``.
        places: The states that belong to $M$, boolean, shape ``(L,)``.
        alpha: $\alpha$; 0 with ``scale=1`` changes nothing, and -0.001 with ``scale=1.2`` strengthens the concept.
        scale: $s$.

    Returns:
        Shape ``(L, D)``; other states stay bit-identical.

    Raises:
        ValueError: If ``places`` does not have one boolean per state.

    Example:
        >>> suppress_eot(torch.eye(2), torch.tensor([False, True]))
        tensor([[1.0000, 0.0000],
                [0.0000, 0.3679]])

    References:
        Li et al., *Get What You Want, Not What You Don't: Image Content Suppression for Text-to-Image Diffusion
        Models*, arXiv:2402.05375. This is the first step; the second one optimizes the states based on attention maps
        during sampling.
    """
    if places.shape != states.shape[:1] or places.dtype != torch.bool:
        raise ValueError(
            f"places must be one boolean for each of the {len(states)} states, but got {tuple(places.shape)} "
            f"{places.dtype}."
        )
    u, sigma, v = torch.linalg.svd(states[places].double(), full_matrices=False)
    out = states.clone()
    out[places] = (u * (scale * torch.exp(-alpha * sigma) * sigma) @ v).to(states.dtype)
    return out


def concept_and_end_places(ids: Tensor, concept: Tensor, end: int) -> Tensor:
    """Positions of a concept in a prompt, and of the end of the prompt with the padding after it.

    Args:
        ids: Token ids of one prompt with its start and end tokens, shape ``(L,)``.
        concept: Token ids of the concept without these, shape ``(K,)``.
        end: Id of the end-of-text token.

    Returns:
        Boolean, shape ``(L,)``; all false if the concept is not in the prompt.
        Boolean, shape ``(L,)``; no place at all if the concept is not in the prompt.

    Raises:
        ValueError: If the concept has no tokens, or the prompt has no end.

    Example:
        >>> concept_and_end_places(torch.tensor([0, 5, 7, 8, 1, 1]), torch.tensor([7, 8]), end=1).int()
        tensor([0, 0, 1, 1, 1, 1], dtype=torch.int32)
    """
    if not len(concept):
        raise ValueError("The concept has no tokens. Pass the words that name it in prompts.")
    ends = (ids == end).nonzero()
    if not len(ends):
        raise ValueError(f"The prompt {ids.tolist()} has no end of text {end}: pass ids as the tokenizer makes them.")
    places = torch.zeros_like(ids, dtype=torch.bool)
    length = int(ends[0])
    for first in range(1, length - len(concept) + 1):
        if torch.equal(ids[first : first + len(concept)], concept):
            places[first : first + len(concept)] = True
    if places.any():
        places[length:] = True
    return places
