"""Fine-tuning on refusals."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.callback import Reference
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["IdkNLL"]


class IdkNLL(ForgetRetainObjective):
    r"""Fine-tuning on refusals to the forget questions, which TOFU calls preference optimization.

    $$\mathcal{L} = w_u \mathrm{NLL}_{tok}(\text{refusals}) + w_r \mathcal{L}_{retain}$$

    Needs ``"idk"`` rows in the batch, the forget questions with refusals, which
    [`LanguageDataModule`][lightning_unlearn.LanguageDataModule] draws anew each epoch. Each term is averaged over its
    own tokens; TOFU takes one mean over both, which the longer retain answers dominate.

    Args:
        refusal_weight: Weight of the refusal term $w_u$.
        retain_weight: Weight of the retain term $w_r$.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``.
        score: Reads likelihoods off the module.
        reference: How the original model is kept where the retain term needs it.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a weight is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[IdkNLL()], logger=False, accelerator="cpu")

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, arXiv:2401.06121.
    """

    def __init__(
        self,
        refusal_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        super().__init__(0.0, retain_weight, retain, refusal_weight, score, reference)
        self.keep_reference = keep_reference

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Zero: the true answers take no part."""
        return readings["idk"].nll.new_zeros(())
