"""Random mask: the baseline of every attribution."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.functional.saliency.random import random_score
from lightning_unlearn.weights.layout import local_part
from lightning_unlearn.weights.weight_mask import Scope, WeightMask

__all__ = ["RandomMask"]


class RandomMask(WeightMask):
    r"""Lets weights drawn at random move: $S_i \sim U[0, 1)$. The baseline of every attribution.

    Args:
        density: Share of weights that may move, in [0, 1].
        seed: Seed of the draw; the global generator is not touched.
        scope: Where scores compete: ``"global"``, ``"per_layer"`` or ``"per_tensor"``.
        parameters: Regular expression; only parameters whose name it is found in are drawn from.
        mask_file: A mask that an earlier run saved with the same settings.

    Example:
        >>> RandomMask(density=0.1, seed=1).seed
        1
    """

    own_settings: ClassVar[tuple[str, ...]] = ("seed",)

    def __init__(
        self,
        density: float,
        seed: int = 0,
        scope: Scope = "global",
        parameters: str | None = None,
        mask_file: str | None = None,
    ) -> None:
        super().__init__(density, scope, parameters, mask_file)
        self.seed = seed

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """A number for each weight, the same on every process."""
        return {
            name: local_part(p, random_score(p.shape, self.seed * 1_000_003 + i))
            for i, (name, p) in enumerate(parameters.items())
        }
