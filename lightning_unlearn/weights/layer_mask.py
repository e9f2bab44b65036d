"""Layer mask: whole layers, chosen by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.weights.weight_mask import WeightMask

__all__ = ["LayerMask"]


class LayerMask(WeightMask):
    r"""Lets all weights of some layers move and no others; by default the feed-forward layers, which store facts.

    For a language model of ours, ``LitCausalLM(trainable=...)`` does the same without the memory of optimizer states,
    gradients and copies; this works on any module as it is.

    Args:
        parameters: Regular expression; parameters whose name it is found in may move.

    Example:
        >>> LayerMask(r"layers\.(5|6|7)\.mlp\.down_proj").density
        1.0
    """

    def __init__(self, parameters: str = r"mlp\.") -> None:
        super().__init__(1.0, parameters=parameters)

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """One score for all weights, since all may move."""
        return {n: torch.ones_like(local_tensor(p.detach()), dtype=torch.float32) for n, p in parameters.items()}
