"""Features of Inception v3, as the FID of UnlearnCanvas takes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["InceptionFeatures"]


class InceptionFeatures(nn.Module):
    """The 2,048 features of Inception v3 from which the published FID of UnlearnCanvas is computed.

    Images are resized to 512 pixels and rounded to 8 bits, then resized to 299, both with OpenCV's bilinear filter,
    which does not smooth. Colours in [-1, 1] go into torchvision's network, which normalises them once more, as its
    ImageNet weights require. The features are the means of its last feature maps. Other implementations of FID use
    another network and filter, so values are comparable within this benchmark only.

    Args:
        network: Inception v3 of torchvision in this state; by default with its ImageNet weights, which torchvision
            downloads.
        layer: Name of the layer whose maps are averaged.
        num_features: Number of these maps.

    Raises:
        ImportError: If torchvision is missing, and no network is given.
        ValueError: If the network has no such layer, or images have another shape than ``(B, 3, H, W)``.

    Example:
        ```python
        features = InceptionFeatures().to("cuda")
        score_answers("answers/van_gogh", "unlearncanvas", judges, features=features)
        ```

    References:
        Zhang et al., *UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
        Models*, arXiv:2402.11846, of which this is the released code.
    """

    def __init__(self, network: nn.Module | None = None, layer: str = "Mixed_7c", num_features: int = 2048) -> None:
        super().__init__()
        if network is None:
            try:
                from torchvision.models import Inception_V3_Weights, inception_v3
            except ImportError:
                raise ImportError(
                    "The network of these features is torchvision's: pip install torchvision. Or pass another one."
                ) from None
            network = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1)
        if layer not in dict(network.named_modules()):
            raise ValueError(f"{type(network).__name__} has no layer {layer!r}.")
        self.network, self.layer, self.num_features = network, layer, num_features
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, num_features)`` of images ``(B, 3, H, W)`` with colours in [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images have the shape (B, 3, H, W), but got {tuple(images.shape)}.")
        maps: list[Tensor] = []
        handle = self.network.get_submodule(self.layer).register_forward_hook(lambda *call: maps.append(call[2]))
        try:
            self.network(resized(images.float()) * 2 - 1)
        finally:
            handle.remove()
        return maps[0].mean((2, 3)).float()


def resized(images: Tensor) -> Tensor:
    """Images ``(B, 3, 299, 299)``, by way of 8-bit images of 512 pixels."""
    if images.shape[2:] != (512, 512):
        images = (F.interpolate(images, (512, 512), mode="bilinear") * 255).round() / 255
    return F.interpolate(images, (299, 299), mode="bilinear")
