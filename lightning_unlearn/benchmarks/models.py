"""Small classifiers that train in seconds on one core."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_unlearn.classification.lit_classifier import LitClassifier

__all__ = ["MLP", "ConvNet", "ConvNet1D", "CosineClassifier", "ResNet8", "TextTransformer"]


class CosineClassifier(LitClassifier):
    """A classifier that trains by SGD with a cosine schedule of the learning rate."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"}]


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class ResNet8(nn.Sequential):
    """Residual network of eight layers with batch normalization: a convolution, three blocks of two, a linear layer.

    Args:
        classes: Number of logits.
        channels: Channels of an image.
        width: Channels of the first block; the next have twice and four times as many at half the resolution each.
    """

    def __init__(self, classes: int = 10, channels: int = 1, width: int = 8) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Residual(width, width, 1),
            _Residual(width, 2 * width, 2),
            _Residual(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )


class ConvNet(nn.Sequential):
    """Two convolutions over an image, each at half the resolution, and two linear layers; without normalization.

    Args:
        classes: Number of logits.
        channels: Channels of an image.
        size: Side of an image.
        width: Channels of the first convolution; the second has twice as many.
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 14, width: int = 16) -> None:
        side = -(-size // 4)  # padded on both sides
        super().__init__(
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * side**2, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )


class MLP(nn.Sequential):
    """Two hidden layers.

    Args:
        classes: Number of logits.
        features: Features per row.
        width: Units of a hidden layer.
    """

    def __init__(self, classes: int = 10, features: int = 64, width: int = 64) -> None:
        super().__init__(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )


class ConvNet1D(nn.Sequential):
    """Three convolutions over a signal, each at half the resolution and with batch normalization, and a linear layer.

    Args:
        classes: Number of logits.
        length: Values per signal; a multiple of 8.
        width: Channels of each convolution.
    """

    def __init__(self, classes: int = 10, length: int = 40, width: int = 24) -> None:
        layers: list[nn.Module] = []
        for inputs, kernel in ((1, 5), (width, 3), (width, 3)):
            convolution = nn.Conv1d(inputs, width, kernel, stride=2, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm1d(width), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * length // 8, classes))


class TextTransformer(nn.Module):
    """A transformer encoder on token ids, the mean over its positions, and a linear layer. Id 0 is padding.

    Args:
        classes: Number of logits.
        vocabulary: Number of token ids.
        length: Maximum number of tokens per row.
        width: Size of an embedding.
        layers: Number of encoder layers.
        heads: Attention heads per layer.
    """

    def __init__(
        self,
        classes: int = 20,
        vocabulary: int = 2000,
        length: int = 32,
        width: int = 32,
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        given = (ids != 0).unsqueeze(-1)
        given[:, 0] = True  # an empty row has nothing to attend to otherwise
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        hidden = self.encoder(hidden, src_key_padding_mask=~given.squeeze(-1))
        return self.head((hidden * given).sum(1) / given.sum(1).clamp_min(1))
