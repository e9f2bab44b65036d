"""Gradient difference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Reference
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.gradient_ascent import gradient_ascent
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["GradDiff"]


class GradDiff(ForgetRetainObjective):
    r"""Gradient difference: ascent on the forget rows, descent on the retain rows.

    $$\mathcal{L} = -w_f \frac{\sum_{b \in F} S_b}{\sum_{b \in F} n_b} + w_r \mathcal{L}_{retain}$$

    Each term is averaged over its own tokens.

    Args:
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        max_forget_nll: Stop training once the mean forget NLL of a batch is above this many nats per token: the forget
            term has no floor.
        score: Reads likelihoods off the module.
        reference: How the original model is kept where the retain term needs it.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a weight is negative or ``max_forget_nll`` is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradDiff(retain_weight=2.0)], logger=False, accelerator="cpu")

    References:
        Liu et al., *Continual Learning and Private Unlearning*, arXiv:2203.12817.
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    def __init__(
        self,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        max_forget_nll: float | None = None,
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score, reference)
        self.keep_reference = keep_reference
        self.max_forget_nll = None if max_forget_nll is None else above("max_forget_nll", max_forget_nll, 0)

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Minus the mean NLL per token."""
        forget = readings["forget"]
        return self.token_mean(gradient_ascent(forget.nll), forget.length)
