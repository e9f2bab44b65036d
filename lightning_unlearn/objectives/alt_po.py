"""Alternate preference optimization."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.core.callback import Needs, Reference
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.dpo import dpo
from lightning_unlearn.objectives.objective import RetainTerm
from lightning_unlearn.objectives.preference import PreferenceObjective
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["AltPO"]


class AltPO(PreferenceObjective):
    r"""Alternate preference optimization: prefer another plausible answer to the one to forget.

    $$\mathcal{L} = -w_f \frac{2}{\beta}\, \mathbb{E}_b \log\sigma\big(\beta\big[(S^l_b - S^l_{ref,b})
      - (S^w_b - S^w_{ref,b})\big]\big) + w_r \mathcal{L}_{retain}$$

    $S^w$ is the NLL of an alternate answer and $S^l$ that of the true one, summed over their tokens. The model keeps
    answering in its own style, whereas a refusal would show that something was removed. Needs ``"alternate"`` rows in
    the batch, which [`LanguageDataModule`][lightning_unlearn.LanguageDataModule] makes of forget rows with a column
    ``alternate``; [`generate_alternates`][lightning_unlearn.generate_alternates] has the model write them. Each row is
    paired with one of its ``K`` alternates per epoch, and with each of them once in ``K`` epochs; the paper's epoch
    covers all five.

    Args:
        beta: Inverse temperature; 0.05, 0.1 and 0.5 are tried in the paper.
        forget_weight: Weight of the preference term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 1, 2 and 5 are tried in the paper, 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        score: Reads likelihoods off the module.
        reference: ``"cache"``: $S_{ref}$ of every forget row with its answer and with each alternate, read once before
            the first step; ``"snapshot"``: the starting weights, exchanged in at each step; ``"auto"``: the cache
            for up to 16 alternates a row, otherwise the snapshot.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` or ``forget_weight`` is not positive, or ``retain_weight`` is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AltPO(beta=0.1)], logger=False, accelerator="cpu")

    References:
        Mekala et al., *Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models*,
        arXiv:2409.13474.
    """

    needs = Needs(per_example=True, reference_nll=("forget", "alternate"))

    preferred = "alternate"

    def __init__(
        self,
        beta: float = 0.1,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        super().__init__(beta, forget_weight, retain_weight, retain, score, reference)
        self.keep_reference = keep_reference

    def preference_loss(self, preferred: Reading, forget: Reading) -> Tensor:
        """Mean over pairs of the preference loss."""
        assert preferred.reference_nll is not None
        assert forget.reference_nll is not None
        return dpo(preferred.nll, preferred.reference_nll, forget.nll, forget.reference_nll, beta=self.beta).mean()
