"""Simple negative preference optimization."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Needs, Reference
from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.simnpo import simnpo
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["SimNPO"]


class SimNPO(ForgetRetainObjective):
    r"""Simple negative preference optimization: NPO without a reference, on the NLL per token.

    $$\mathcal{L} = -w_f \frac{2}{\beta}\, \mathbb{E}_b \log\sigma\big(\beta(S_b / n_b - \delta)\big)
      + w_r \mathcal{L}_{retain}$$

    Answers that the model hardly knows get little weight, whatever the original model knew, and long answers are not
    favoured. No second model is kept.

    Args:
        beta: Inverse temperature. Good values depend on how much $S_b / n_b$ varies between rows: 2.5 to 4.5 on TOFU.
        margin: Target $\delta$ in nats per token; the paper's $\gamma$ is $\beta\delta$.
        forget_weight: Weight of the forget term $w_f$; 0.1 to 0.2 in the released TOFU settings.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads likelihoods off the module.
        reference: How the original model is kept where the retain term needs it.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` is not positive, or ``margin`` or a weight is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SimNPO(beta=2.5)], logger=False, accelerator="cpu")

    References:
        Fan et al., *Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning*,
        arXiv:2410.07163.
    """

    needs = Needs(per_example=True)

    def __init__(
        self,
        beta: float = 2.5,
        margin: float = 0.0,
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
        self.margin = at_least("margin", margin, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over sequences of the reference-free preference loss."""
        forget = readings["forget"]
        return simnpo(forget.nll, forget.length, beta=self.beta, margin=self.margin).mean()
