"""Negative preference optimization."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Needs, Reference
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.npo import npo
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["NPO"]


class NPO(ForgetRetainObjective):
    r"""Negative preference optimization: make each forget answer less likely than under the original model.

    $$\mathcal{L} = -w_f \frac{2}{\beta}\, \mathbb{E}_b \log\sigma\big(\beta(S_b - S_{ref,b})\big)
      + w_r \mathcal{L}_{retain}$$

    $S_b$ is the NLL of a forget answer, summed over its tokens. The push on an answer fades as it becomes less likely
    than at the start, so the model does not collapse as under gradient ascent.

    Args:
        beta: Inverse temperature; near 0 it is gradient ascent.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads likelihoods off the module.
        reference: ``"cache"``: $S_{ref}$ of every forget row, read once, for rows with a stable ``index``;
            ``"snapshot"``: the starting weights, exchanged in at each step; ``"auto"``: the cache where it can be.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` is not positive or a weight is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[NPO(beta=0.1)], logger=False, accelerator="cpu")

    References:
        Zhang et al., *Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning*,
        arXiv:2404.05868.
    """

    needs = Needs(per_example=True, reference_nll=("forget",))

    def __init__(
        self,
        beta: float = 0.1,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score, reference)
        self.keep_reference = keep_reference
        self.beta = above("beta", beta, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over sequences of the negative preference loss."""
        forget = readings["forget"]
        assert forget.reference_nll is not None
        return npo(forget.nll, forget.reference_nll, beta=self.beta).mean()
