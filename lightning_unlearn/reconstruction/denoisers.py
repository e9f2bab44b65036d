"""Denoising networks for complex images, with real and imaginary part as channels."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_unlearn.core.checks import at_least

__all__ = ["DIDN", "ConvDenoiser"]


class ConvDenoiser(nn.Module):
    r"""A small residual network: $D(x) = x + c(x)$, with a stack $c$ of 3 by 3 convolutions and ReLU between them.

    Args:
        channels: Width of the hidden layers.
        depth: Number of convolutions, at least 2.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> ConvDenoiser(channels=8, depth=3)(torch.randn(1, 2, 9, 7)).shape
        torch.Size([1, 2, 9, 7])
    """

    def __init__(self, channels: int = 24, depth: int = 5) -> None:
        super().__init__()
        widths = [2, *[at_least("channels", channels, 1)] * (at_least("depth", depth, 2) - 1)]
        hidden = [layer for pair in pairwise(widths) for layer in (nn.Conv2d(*pair, 3, padding=1), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Conv2d(channels, 2, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Denoise images of shape (N, 2, H, W)."""
        return image + self.layers(image)


class DIDN(nn.Module):
    r"""Deep iterative down-up network, the denoiser of SMUG.

    At half resolution, a sequence of blocks each goes down by two more octaves and up again; a 1 by 1 convolution
    combines their outputs. Downsampling is a convolution with stride 2, upsampling a pixel shuffle; activations are
    PReLU with one slope. The input is added to the output. Images are zero-padded to a multiple of 8.

    The layers are those of the network that SMUG was run with, which omits the reconstruction block of the paper.
    Weights start at $\mathcal{N}(0, 0.02^2)$ and biases at 0, so the network is close to the identity initially.

    Args:
        channels: Width at half resolution, a multiple of 4.
        blocks: Number of down-up blocks; SMUG has 2, its journal version 3.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> DIDN(channels=4, blocks=1)(torch.randn(1, 2, 13, 10)).shape
        torch.Size([1, 2, 13, 10])

    References:
        Yu et al., *Deep Iterative Down-Up CNN for Image Denoising*, CVPR Workshops 2019.
        Li et al., *SMUG: Towards Robust MRI Reconstruction by Smoothed Unrolling*, arXiv:2303.12735.
    """

    def __init__(self, channels: int = 64, blocks: int = 2) -> None:
        super().__init__()
        if channels % 4 or channels < 4:
            raise ValueError(f"channels must be a multiple of 4, which a pixel shuffle divides by, but got {channels}.")
        self.enter = nn.Sequential(_convolution(2, channels), _convolution(channels, channels, stride=2))
        self.blocks = nn.ModuleList(_DownUp(channels) for _ in range(at_least("blocks", blocks, 1)))
        self.join = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), nn.PReLU(), _Residual(channels, 1))
        self.leave = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(channels // 4, 2, 3, padding=1))
        self.apply(_initialize)

    def forward(self, image: Tensor) -> Tensor:
        """Denoise images of shape (N, 2, H, W)."""
        height, width = image.shape[-2:]
        down, right = -height % 8, -width % 8
        top, left = down // 2, right // 2
        features = self.enter(pad(image, (left, right - left, top, down - top)))
        given = []
        for block in self.blocks:
            features = block(features)
            given.append(features)
        correction = self.leave(self.join(torch.cat(given, 1)))
        return image + correction[..., top : top + height, left : left + width]


class _DownUp(nn.Module):
    """Two octaves down and up again, with a skip connection at each resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = _Residual(width, 2)
        self.to_middle = _convolution(width, 2 * width, stride=2)
        self.middle = _Residual(2 * width, 1)
        self.to_coarse = _convolution(2 * width, 4 * width, stride=2)
        self.coarse = _Residual(4 * width, 1)
        self.from_coarse = _up(4 * width)
        self.merge_middle = nn.Conv2d(4 * width, 2 * width, 1)
        self.middle_again = _Residual(2 * width, 1)
        self.from_middle = _up(2 * width)
        self.merge_fine = nn.Conv2d(2 * width, width, 1)
        self.fine_again = _Residual(width, 2)
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        fine = self.fine(features)
        middle = self.middle(self.to_middle(fine))
        coarse = self.coarse(self.to_coarse(middle))
        middle = self.middle_again(self.merge_middle(torch.cat([self.from_coarse(coarse), middle], 1)))
        fine = self.fine_again(self.merge_fine(torch.cat([self.from_middle(middle), fine], 1)))
        return features + self.last(fine)


class _Residual(nn.Sequential):
    """Sequence of convolutions with a residual connection."""

    def __init__(self, width: int, convolutions: int) -> None:
        super().__init__(*(_convolution(width, width) for _ in range(convolutions)))

    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features)


def _convolution(wide: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(wide, out, 3, stride, padding=1), nn.PReLU())


def _up(width: int) -> nn.Sequential:
    """Upsampling to twice the resolution and half the width."""
    return nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.PixelShuffle(2))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
