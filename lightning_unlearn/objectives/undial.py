"""Unlearning by self-distillation with adjusted logits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.undial import undial
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["UNDIAL"]


class UNDIAL(ForgetRetainObjective):
    r"""Self-distillation with adjusted logits: imitate the original model with lower logits of the forget tokens.

    $$\mathcal{L} = -w_f\, \mathbb{E}_t \sum_v q_{t,v} \log p_{t,v} + w_r \mathcal{L}_{retain}, \qquad
      q_t = \mathrm{softmax}\big(z_{ref,t} - \beta\, \mathrm{onehot}(y_t)\big)$$

    The target does not move, so long training converges. The original model is read on forget rows at each step: its
    weights are exchanged in, and with LoRA the adapter is switched off.

    The mean is over supervised tokens. A released port takes it over prompt and padding too, where its label of -100
    lowers an arbitrary word of the vocabulary, and runs the retain rows even at weight 0.

    Args:
        beta: Amount subtracted from the logit of a forget token; 3 to 30 in the published grid.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out, as the paper does.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads logits off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` is not positive, a weight is negative, or ``score`` gives no logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UNDIAL(beta=10.0)], logger=False, accelerator="cpu")

    References:
        Dong et al., *UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models*,
        arXiv:2402.10052.
    """

    needs = Needs(logits=True, reference_logits=("forget",))

    def __init__(
        self,
        beta: float = 10.0,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 0.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        score: Score = causal_lm_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score, reference="snapshot")
        self.keep_reference = keep_reference
        self.beta = above("beta", beta, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over tokens of the cross entropy to the adjusted original model."""
        forget = readings["forget"]
        assert forget.predictions is not None
        assert forget.reference_logits is not None
        values = undial(
            forget.predictions.logits, forget.reference_logits, forget.predictions.classes(), beta=self.beta
        )
        return self.token_mean(values, forget.length)
