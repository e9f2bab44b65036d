"""Encoder of weighted SMUG, which gives each noisy image a weight."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least, one_of

__all__ = ["WeightEncoder"]

Norm = Literal["batch", "group"]


class WeightEncoder(nn.Module):
    r"""Encoder that gives each noisy image a weight $w = E_\phi(x) \in (0, 1)$.

    Its layers are blocks of a 3 by 3 convolution without bias, a normalization and ReLU, then the mean over pixels, a
    linear layer and a sigmoid.

    Args:
        channels: Width of the convolutions; for ``norm="group"`` a multiple of 4.
        depth: Number of blocks.
        norm: ``"batch"`` as in the paper. ``"group"``, with 4 groups, uses no batch statistics, so that a weight
            depends only on its own image: for batches of one or two images, and for several processes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> weights = WeightEncoder(norm="group")(torch.randn(3, 2, 16, 16))
        >>> weights.shape, bool((0 < weights).all() and (weights < 1).all())
        (torch.Size([3]), True)

    References:
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    def __init__(self, channels: int = 16, depth: int = 5, norm: Norm = "batch") -> None:
        super().__init__()
        at_least("channels", channels, 1)
        one_of("norm", norm, Norm)
        if norm == "group" and channels % 4:
            raise ValueError(f"norm='group' makes 4 groups of the channels, so that {channels} can't be shared out.")
        layers: list[nn.Module] = []
        for wide in [2, *[channels] * (at_least("depth", depth, 1) - 1)]:
            normalize = nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(4, channels)
            layers += [nn.Conv2d(wide, channels, 3, padding=1, bias=False), normalize, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Weigh images of shape (N, 2, H, W). Returns shape (N,)."""
        return self.head(self.layers(image).mean((-2, -1))).sigmoid().squeeze(-1)
