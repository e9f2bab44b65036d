"""Direct preference optimization towards refusals."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.core.callback import Needs, Reference
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.dpo import dpo
from lightning_unlearn.objectives.objective import RetainTerm
from lightning_unlearn.objectives.preference import PreferenceObjective
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["IdkDPO"]


class IdkDPO(PreferenceObjective):
    r"""Direct preference optimization: prefer a refusal to the answer to forget.

    $$\mathcal{L} = -w_f \frac{2}{\beta}\, \mathbb{E}_b \log\sigma\big(\beta\big[(S^l_b - S^l_{ref,b})
      - (S^w_b - S^w_{ref,b})\big]\big) + w_r \mathcal{L}_{retain}$$

    $S^w$ is the NLL of the refusal and $S^l$ that of the true answer, summed over their tokens. Needs ``"idk"`` rows in
    the batch, the forget questions with refusals, which [`LanguageDataModule`][lightning_unlearn.LanguageDataModule]
    draws anew each epoch.

    Args:
        beta: Inverse temperature.
        forget_weight: Weight of the preference term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        score: Reads likelihoods off the module.
        reference: ``"cache"``: $S_{ref}$ of every forget row with its answer and with *each* refusal, read once before
            the first step; ``"snapshot"``: the starting weights, exchanged in at each step; ``"auto"``: the cache
            for up to 16 refusals, otherwise the snapshot, since then few of what the cache holds would be used.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``beta`` or ``forget_weight`` is not positive, or ``retain_weight`` is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[IdkDPO(beta=0.1)], logger=False, accelerator="cpu")

    References:
        Rafailov et al., *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*,
        arXiv:2305.18290.
        Zhang et al., *Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning*,
        arXiv:2404.05868, which names this use of it and its scale $2 / \beta$.
    """

    needs = Needs(per_example=True, reference_nll=("forget", "idk"))

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
