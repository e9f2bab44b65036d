"""Gradient mask: the weights with the largest forget gradients."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_unlearn.core.gradients import row_gradient
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.functional.saliency.gradient import gradient_score
from lightning_unlearn.weights.weight_mask import WeightMask

__all__ = ["GradientMask"]


class GradientMask(WeightMask):
    r"""Lets the weights with the largest forget gradient move: $S_i = |g_{f,i}|$.

    Takes the arguments of [`WeightMask`][lightning_unlearn.WeightMask].

    Example:
        >>> GradientMask(density=0.5).density
        0.5

    References:
        Fan et al., arXiv:2310.12508, see [`SalUn`][lightning_unlearn.SalUn].
    """

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """The formula, with the gradient of the mean NLL per token of the forget rows."""
        share = RunRows.of_role(trainer, "forget", type(self).__name__)
        grads = row_gradient(trainer, module, parameters, self.likelihood(trainer), share)
        return {name: gradient_score(grads.pop(name)) for name in parameters}
