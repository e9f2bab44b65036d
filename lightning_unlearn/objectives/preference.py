"""What the objectives have in common that hold another answer against the one to forget."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_unlearn.core.callback import Reading, Reference
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm, check_positive
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["PreferenceObjective"]


class PreferenceObjective(ForgetRetainObjective):
    r"""An objective that prefers, for each forget question, another answer to the one to forget.

    $$\mathcal{L} = w_f \mathcal{L}_{preference} + w_r \mathcal{L}_{retain}$$

    Forget, preferred and retain rows go through the model in one forward pass.

    Args:
        beta: Inverse temperature.
        forget_weight: $w_f$.
        retain_weight: $w_r$; 0 leaves the retain term out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``.
        score: Reads likelihoods off the module.
        reference: How the starting model is kept.
    """

    needs_reference = True
    per_example = True

    preferred: ClassVar[str] = "idk"
    """The role of the other answers; its rows are those of the forget role in the same order."""

    def __init__(
        self,
        beta: float,
        forget_weight: float,
        retain_weight: float | Ramp,
        retain: RetainTerm,
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
    ) -> None:
        super().__init__(check_positive("forget_weight", forget_weight), retain_weight, retain, 0.0, score, reference)
        self.beta = check_positive("beta", beta)

    @abstractmethod
    def preference_loss(self, preferred: Reading, forget: Reading) -> Tensor:
        """The preference term, a scalar, from what was read of both answers."""

    def roles(self) -> tuple[str, ...]:
        """Rows to forget and to keep, and the preferred answers."""
        return (*super().roles(), self.preferred)

    def forget_term(self, module: LightningModule, read: dict[str, Reading]) -> Tensor:
        """The preference term."""
        return self.preference_loss(read[self.preferred], read["forget"])

    def forget_loss(self, module: LightningModule, forget: Reading) -> Tensor:
        """Never read: there is no loss of the forget rows alone."""
        raise AssertionError(f"{type(self).__name__} compares two answers")
