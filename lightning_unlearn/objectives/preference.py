"""Base class of preference objectives, which compare a preferred answer with the answer to forget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from lightning_unlearn.core.callback import Needs, Reference
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["PreferenceObjective"]


class PreferenceObjective(ForgetRetainObjective):
    r"""Base class of objectives that prefer another answer to the one to forget.

    $$\mathcal{L} = w_f \mathcal{L}_{preference} + w_r \mathcal{L}_{retain}$$

    One forward pass reads forget, preferred and retain rows.

    Args:
        beta: Inverse temperature.
        forget_weight: $w_f$.
        retain_weight: $w_r$; 0 leaves the retain term out.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``.
        score: Reads likelihoods off the module.
        reference: How the original model is kept.
    """

    needs = Needs(per_example=True)

    preferred: ClassVar[str] = "idk"
    """The role of the other answers; its rows are those of the forget role in the same order."""

    def __init__(
        self,
        beta: float,
        forget_weight: float,
        retain_weight: float | Ramp,
        retain: RetainTerm,
        score: Score,
        reference: Reference = "auto",
    ) -> None:
        super().__init__(above("forget_weight", forget_weight, 0), retain_weight, retain, 0.0, score, reference)
        roles = (*self.needs.roles, self.preferred)
        self.forget_roles = ("forget", self.preferred)
        self.needs = replace(self.needs, roles=roles, reference_nll=type(self).needs.reference_nll)
        self.beta = above("beta", beta, 0)

    @abstractmethod
    def preference_loss(self, preferred: Reading, forget: Reading) -> Tensor:
        """The preference term, a scalar, from the readings of both answers."""

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """The preference term."""
        return self.preference_loss(readings[self.preferred], readings["forget"])
