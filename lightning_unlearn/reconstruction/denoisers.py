"""Denoisers of complex images, as networks on their real and imaginary part."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least

__all__ = ["ConvDenoiser"]


class ConvDenoiser(nn.Module):
    r"""A small residual network: $D(x) = x + c(x)$, where $c$ is a stack of 3 by 3 convolutions with ReLU between them.

    Args:
        channels: Width of the hidden layers.
        depth: The number of convolutions, at least 2.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> image = torch.randn(1, 2, 9, 7)
        >>> ConvDenoiser(channels=8, depth=3)(image).shape
        torch.Size([1, 2, 9, 7])
    """

    def __init__(self, channels: int = 24, depth: int = 5) -> None:
        super().__init__()
        at_least("channels", channels, 1)
        widths = [2, *[channels] * (at_least("depth", depth, 2) - 1)]
        layers = [
            layer
            for wide, out in zip(widths, widths[1:], strict=False)
            for layer in (nn.Conv2d(wide, out, 3, padding=1), nn.ReLU())
        ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 2, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Denoise images of shape (N, 2, H, W)."""
        return image + self.layers(image)
