"""Gradient ascent with a divergence penalty on the forget rows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.kl import kl_divergence
from lightning_unlearn.functional.objectives.gradient_ascent import gradient_ascent
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["ForgetKL"]


class ForgetKL(ForgetRetainObjective):
    r"""Gradient ascent on the labels of forget rows, with a divergence that keeps the other predictions.

    $$\mathcal{L} = w_f \left( -\mathrm{NLL}_{tok}(\text{forget})
      + \kappa\, \mathbb{E}_t\, \mathrm{KL}(p_{ref,t} \Vert p_{\theta,t}) \right) + w_r \mathcal{L}_{retain}$$

    No paper proposes it. It is the loss ``grad_ascent_forgetKL`` in the code released with NPO (arXiv:2404.05868), with
    $\kappa = 1$ and no retain term. There the divergence is minimized, not maximized: it keeps the predictions on the
    forget rows, apart from the label. (If it were maximized, it would have no gradient at the original model.) The
    released code takes its mean over prompt and padding too; here it is over supervised positions.

    At $\kappa = 1$ the gradient to the logits is $\mathrm{onehot}(y) - p_{ref}$ wherever the model is, so there is no
    floor. With $\kappa > 1$ there is one where $\kappa\, p_{ref}(y) > 1$, at
    $p_\theta = (\kappa p_{ref} - \mathrm{onehot}(y)) / (\kappa - 1)$.

    Args:
        kl_weight: Weight of the divergence $\kappa$; 0 leaves gradient ascent.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out, as the released code does.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        max_forget_nll: Stop training once the mean forget NLL of a batch is above this many nats per token.
        score: Reads logits off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a weight is negative, ``max_forget_nll`` is not positive, or ``score`` gives no logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ForgetKL(max_forget_nll=5.0)], logger=False, accelerator="cpu")

    References:
        Zhang et al., *Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning*,
        arXiv:2404.05868 (its released code).
    """

    needs = Needs(logits=True, reference_logits=("forget",))

    def __init__(
        self,
        kl_weight: float = 1.0,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        max_forget_nll: float | None = None,
        score: Score = causal_lm_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score, reference="snapshot")
        self.keep_reference = keep_reference
        self.kl_weight = at_least("kl_weight", kl_weight, 0)
        self.max_forget_nll = None if max_forget_nll is None else above("max_forget_nll", max_forget_nll, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean over tokens of the ascent and the divergence."""
        forget = readings["forget"]
        assert forget.predictions is not None
        assert forget.reference_logits is not None
        ascent = self.token_mean(gradient_ascent(forget.nll), forget.length)
        divergence = kl_divergence(forget.predictions.logits, forget.reference_logits)
        return ascent + self.kl_weight * self.token_mean(divergence, forget.length)
