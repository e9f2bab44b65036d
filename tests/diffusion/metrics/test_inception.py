"""Features of Inception v3."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import InceptionFeatures


class Network(nn.Module):
    """In place of Inception: its maps are the colours that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.Mixed_7c = nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.dropout(self.Mixed_7c(images)).mean((1, 2, 3))


def test_features_are_means_of_the_maps_of_colours_from_minus_one_to_one() -> None:
    network = Network()
    features = InceptionFeatures(network, num_features=3).train()
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 512, 512)
    assert torch.allclose(features(images), torch.tensor([[-1.0, 0.0, 1.0]] * 2), atol=1e-6)
    assert network.seen[0].shape == (2, 3, 299, 299)
    assert not features.training


def test_images_pass_through_512_pixels_of_8_bits() -> None:
    network = Network()
    InceptionFeatures(network, num_features=3)(torch.full((1, 3, 64, 64), 0.3333))
    assert torch.allclose(network.seen[0], torch.tensor(85 / 255 * 2 - 1))


def test_the_filter_does_not_smooth() -> None:
    network = Network()
    stripes = torch.zeros(1, 3, 299 * 3, 299 * 3)
    stripes[..., 1::3] = 1  # every third column, in the middle of what becomes a pixel
    filtered = torch.nn.functional.interpolate(stripes, (512, 512), mode="bilinear", antialias=True)
    InceptionFeatures(network, num_features=3)(stripes)
    assert network.seen[0].std() > 2 * filtered.std()


def test_wrong_networks_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="Network has no layer 'Mixed_8'"):
        InceptionFeatures(Network(), "Mixed_8")
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), but got \(3, 8, 8\)"):
        InceptionFeatures(Network())(torch.zeros(3, 8, 8))
