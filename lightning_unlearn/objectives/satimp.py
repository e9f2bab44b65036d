"""Saturation and importance."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.functional.objectives.satimp import satimp
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["SatImp"]


class SatImp(ForgetRetainObjective):
    r"""Saturation and importance: ascent on forget tokens that the model knows but is not sure of.

    $$\mathcal{L} = -w_f\, \mathbb{E}_t\, \mathrm{sg}(p_t)^{\beta_1}\, \mathrm{sg}(1 - p_t)^{\beta_2}\, \ell_t
      + w_r \mathcal{L}_{retain}$$

    $p_t = e^{-\ell_t}$ is the probability of a forget token, and $\mathrm{sg}$ stops the gradient. Two settings of the
    weights are published: $w_f = 1, w_r = 0.1$ (description and defaults of the released code; ours too) and
    $w_f = 0.1, w_r = 1$ (its configuration file). The first forgets more, the second keeps more. No second model is
    kept, while the released code loads one that it never reads.

    Args:
        beta1: Exponent $\beta_1$ of saturation.
        beta2: Exponent $\beta_2$ of importance; with 0 this is WGA.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads logits off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an exponent or a weight is negative, or ``score`` gives no logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SatImp(beta1=5.0, beta2=1.0)], logger=False, accelerator="cpu")

    References:
        Yang et al., *Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning*, arXiv:2505.11953.
    """

    needs = Needs(logits=True)

    def __init__(
        self,
        beta1: float = 5.0,
        beta2: float = 1.0,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 0.1,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        score: Score = causal_lm_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score)
        self.keep_reference = keep_reference
        self.beta1 = at_least("beta1", beta1, 0)
        self.beta2 = at_least("beta2", beta2, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over tokens of the weighted ascent."""
        forget = readings["forget"]
        assert forget.predictions is not None
        nll = token_nll(forget.predictions.logits, forget.predictions.labels)
        return self.token_mean(satimp(nll, beta1=self.beta1, beta2=self.beta2), forget.length)
