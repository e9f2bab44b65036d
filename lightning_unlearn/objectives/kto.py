"""Kahneman-Tversky optimization towards refusals."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.core.callback import Needs, Reference
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.kto import kto
from lightning_unlearn.objectives.objective import RetainTerm
from lightning_unlearn.objectives.preference import PreferenceObjective
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["KTO"]


class KTO(PreferenceObjective):
    r"""Kahneman-Tversky optimization: answers to forget are undesirable, refusals to their questions desirable.

    $$\mathcal{L} = \tfrac{1}{2} w_f \big(\lambda_U \mathbb{E}_b[1 - \sigma(\beta(z_0 - r^l_b))]
      + \lambda_D \mathbb{E}_b[1 - \sigma(\beta(r^w_b - z_0))]\big) + w_r \mathcal{L}_{retain}$$

    $r = S_{ref} - S$ is the log-ratio of an answer, summed over its tokens, $l$ the true answer and $w$ the refusal.
    $z_0 = \max(0, \mathbb{E}_b\, r^w_b)$ over the batches of all processes, without gradient. This is the loss of the
    KTO paper, chosen because it is bounded on both sides: an answer that is unlikely enough is no longer pushed.

    The paper estimates $z_0$ on questions with the answers to other questions, at the price of a further forward pass.
    A refusal is drawn without regard to its question, so the ``"idk"`` rows are such pairs already; unlike in the
    paper, no answers to forget are among them. Since $z_0$ rises with the likelihood of the refusals, they are pushed
    until they are certain. Released unlearning codes take only the undesirable half, scaled as $1 - (2 / \beta)\,
    \mathbb{E}\, \sigma$, or a log-sigmoid; the half alone is ``desirable_weight=0``. At the reference the push on a
    sequence is $\beta / 8$ for $w_f = 1$, not 1 as in [`IdkDPO`][lightning_unlearn.IdkDPO]: raise ``forget_weight``
    where the retain term holds too strongly.

    Args:
        beta: Inverse temperature.
        undesirable_weight: Weight of the forget answers $\lambda_U$.
        desirable_weight: Weight of the refusals $\lambda_D$.
        forget_weight: Weight of both together $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        score: Reads likelihoods off the module.
        reference: How the original model is kept, as for [`IdkDPO`][lightning_unlearn.IdkDPO].
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` or ``forget_weight`` is not positive, another weight is negative, or both
            ``undesirable_weight`` and ``desirable_weight`` are 0.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[KTO(beta=0.1)], logger=False, accelerator="cpu")

    References:
        Ethayarajh et al., *KTO: Model Alignment as Prospect Theoretic Optimization*, arXiv:2402.01306.
    """

    needs = Needs(per_example=True, reference_nll=("forget", "idk"))

    def __init__(
        self,
        beta: float = 0.1,
        undesirable_weight: float = 1.0,
        desirable_weight: float = 1.0,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        super().__init__(beta, forget_weight, retain_weight, retain, score, reference)
        self.keep_reference = keep_reference
        self.undesirable_weight = at_least("undesirable_weight", undesirable_weight, 0)
        self.desirable_weight = at_least("desirable_weight", desirable_weight, 0)
        if not (undesirable_weight or desirable_weight):
            raise ValueError("undesirable_weight and desirable_weight are both 0, so nothing would be forgotten.")

    def preference_loss(self, preferred: Reading, forget: Reading) -> Tensor:
        """Mean over all rows, undesirable and desirable."""
        assert preferred.reference_nll is not None
        assert forget.reference_nll is not None
        # Every process has equally many rows, so the mean of means is the mean of the joined batch.
        point = mean_over_ranks((preferred.reference_nll - preferred.nll).mean()).clamp(min=0)
        undesirable = kto(forget.nll, forget.reference_nll, point, desirable=False, beta=self.beta).mean()
        desirable = kto(preferred.nll, preferred.reference_nll, point, desirable=True, beta=self.beta).mean()
        return (self.undesirable_weight * undesirable + self.desirable_weight * desirable) / 2
