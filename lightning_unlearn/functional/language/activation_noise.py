"""Noise on hidden states, relative to their size."""

from __future__ import annotations

from torch import Tensor

__all__ = ["relative_noise"]


def relative_noise(hidden: Tensor, noise: Tensor, sigma: float) -> Tensor:
    r"""Hidden states with noise in proportion to each one's root mean square.

    $$h' = h + \sigma\, \mathrm{rms}(h)\, e, \qquad \mathrm{rms}(h) = \lVert h \rVert / \sqrt{d}$$

    With $e \sim N(0, I)$ the noise has about $\sigma$ times the length of $h$ at every layer. Absolute noise would be
    negligible at deep layers and destructive at early ones.

    Args:
        hidden: Hidden states $h$, shape ``(..., d)``; the sum is taken in fp32.
        noise: Draws $e$ of a standard normal distribution, same shape.
        sigma: Relative size of the noise.

    Returns:
        Shape and type of ``hidden``.

    Example:
        >>> import torch
        >>> relative_noise(torch.tensor([2.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, -1.0, 0.0, 2.0]), sigma=0.5)
        tensor([ 2.5000, -0.5000,  0.0000,  1.0000])
    """
    wide = hidden.float()
    rms = wide.square().mean(-1, keepdim=True).sqrt()
    return (wide + sigma * rms * noise.float()).to(hidden.dtype)
