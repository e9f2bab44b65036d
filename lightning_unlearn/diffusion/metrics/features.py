"""Features of images."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NoReturn

from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_unlearn.core.modes import evaluating

__all__ = ["PenultimateFeatures", "refuse"]


class PenultimateFeatures(nn.Module):
    """The inputs of a classifier's last linear layer, as features of images.

    The classifier runs without gradients and in evaluation mode, whatever mode the metric or its owner is set to. It
    has to do its own preprocessing: images are passed to it unchanged.

    Args:
        network: Any classifier, or a judge that is a module, such as
            [`MiniatureJudge`][lightning_unlearn.MiniatureJudge].
        layer: Name of the linear layer whose input the features are; by default the last one.

    Raises:
        TypeError: If the classifier is not a module, or the layer is not linear.
        ValueError: If there is no such layer, or its input is not one vector per image.

    Example:
        >>> import torch
        >>> features = PenultimateFeatures(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> features.num_features, features(torch.rand(5, 3, 2, 2)).shape
        (3, torch.Size([5, 3]))
    """

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"Features are read inside a torch module, but the network is a {type(network).__name__}. Pass the "
                "module that it calls."
            )
        modules = dict(network.named_modules())
        if layer is None:
            layer = next((n for n in reversed(modules) if isinstance(modules[n], nn.Linear)), None)
        if layer is None or layer not in modules:
            raise ValueError(
                f"{type(network).__name__} has no {'linear layer' if layer is None else f'layer {layer!r}'}."
            )
        last = modules[layer]
        if not isinstance(last, nn.Linear):
            raise TypeError(f"Layer {layer!r} is a {type(last).__name__}, but it must be a Linear.")
        self.network, self.layer = network, layer
        self.num_features: int = last.in_features

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, num_features)``, fp32, of what the network takes for a batch."""
        return self.with_outputs(images)[1]

    def with_outputs(self, images: Tensor) -> tuple[Any, Tensor]:
        """What the network returns, and the features, in one pass."""
        seen: list[Tensor] = []
        last = self.network.get_submodule(self.layer)
        handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with evaluating(self.network):
                outputs = self.network(images)
        finally:
            handle.remove()
        shapes = [tuple(x.shape) for x in seen]
        if shapes != [(len(images), self.num_features)]:
            raise ValueError(
                f"Layer {self.layer!r} must read one vector an image, ({len(images)}, {self.num_features}), but read "
                f"{shapes}. Name another layer."
            )
        return outputs, seen[0].float()


def refuse(metric: Metric, message: str) -> NoReturn:
    """Raise in ``compute``, but first give each process its own counts back: torchmetrics does so only after a result.

    Raises:
        ValueError: Always.
    """
    with suppress(TorchMetricsUserError):  # it was not synchronised
        metric.unsync()
    raise ValueError(message)
