"""SNIP mask: connection sensitivity on the forget loss."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.gradients import row_gradient
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.functional.saliency.snip import snip_score
from lightning_unlearn.weights.weight_mask import WeightMask

__all__ = ["SNIP"]


class SNIP(WeightMask):
    r"""Lets the weights move whose removal would change the forget loss most: $S_i = |\theta_i\, g_{f,i}|$.

    [`WAGLE`][lightning_unlearn.WAGLE] with a large ``gamma`` is the same. Takes the arguments of
    [`WeightMask`][lightning_unlearn.WeightMask].

    Example:
        >>> SNIP(density=0.5, scope="per_layer").density
        0.5

    References:
        Lee et al., *SNIP: Single-shot Network Pruning based on Connection Sensitivity*, arXiv:1810.02340.
    """

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """The formula, with the gradient of the mean NLL per token of the forget rows."""
        share = RunRows.of_role(trainer, "forget", type(self).__name__)
        grads = row_gradient(trainer, module, parameters, self.likelihood(trainer), share)
        return {name: snip_score(local_tensor(p.detach()).float(), grads.pop(name)) for name, p in parameters.items()}
