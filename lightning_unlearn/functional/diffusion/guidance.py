"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor

__all__ = ["classifier_free_guidance"]


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    r"""Guided output of a sampler: $e_0 + w\,(e_c - e_0)$.

    It is linear, so it holds for noise prediction and v-prediction alike.

    Args:
        unconditional: Output of the model for the empty prompt, shape ``(B, C, H, W)``.
        conditional: Output for the prompt, same shape.
        scale: $w$; 1 gives the output for the prompt, 0 that for the empty prompt.

    Returns:
        Shape ``(B, C, H, W)``.

    Example:
        >>> import torch
        >>> classifier_free_guidance(torch.tensor([1.0]), torch.tensor([2.0]), 7.5)
        tensor([8.5000])

    References:
        Ho and Salimans, *Classifier-Free Diffusion Guidance*, arXiv:2207.12598.
    """
    return unconditional + scale * (conditional - unconditional)
