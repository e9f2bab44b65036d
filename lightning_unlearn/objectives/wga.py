"""Weighted gradient ascent."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.functional.objectives.wga import wga
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["WGA"]


class WGA(ForgetRetainObjective):
    r"""Weighted gradient ascent: weight each forget token by the model's confidence in it.

    $$\mathcal{L} = -w_f\, \mathbb{E}_t\, \mathrm{sg}(p_t)^\beta\, \ell_t + w_r \mathcal{L}_{retain}$$

    $p_t = e^{-\ell_t}$ is the probability of a forget token, and $\mathrm{sg}$ stops the gradient. Plain ascent pushes
    unlikely tokens hardest; here they get little weight. No second model is kept, while a released port loads one that
    it never reads.

    Args:
        beta: Exponent $\beta$ of the confidence; 0 is gradient ascent.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads logits off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` or a weight is negative, or ``score`` gives no logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[WGA(beta=1.0)], logger=False, accelerator="cpu")

    References:
        Wang et al., *Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond*, arXiv:2502.19301.
    """

    needs = Needs(logits=True)

    def __init__(
        self,
        beta: float = 1.0,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        score: Score = causal_lm_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score)
        self.keep_reference = keep_reference
        self.beta = at_least("beta", beta, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over tokens of the weighted ascent."""
        forget = readings["forget"]
        assert forget.predictions is not None
        nll = token_nll(forget.predictions.logits, forget.predictions.labels)
        return self.token_mean(wga(nll, beta=self.beta), forget.length)
