"""Magnitude mask: the largest weights."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.functional.saliency.magnitude import magnitude_score
from lightning_unlearn.weights.weight_mask import WeightMask

__all__ = ["MagnitudeMask"]


class MagnitudeMask(WeightMask):
    r"""Lets the largest weights move: $S_i = |\theta_i|$. A baseline that uses no data.

    Takes the arguments of [`WeightMask`][lightning_unlearn.WeightMask].

    Example:
        >>> MagnitudeMask(density=0.1).density
        0.1

    References:
        Han et al., *Learning both Weights and Connections for Efficient Neural Networks*, arXiv:1506.02626.
    """

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """The formula."""
        return {name: magnitude_score(local_tensor(p.detach()).float()) for name, p in parameters.items()}
