"""Base classes of evidence in hidden states, compared with the original and a control model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.language.attacks.attack import Cost
from lightning_unlearn.language.attacks.attempts import refuse_texts
from lightning_unlearn.language.attacks.latent import check_same_form
from lightning_unlearn.language.attacks.replicas import whole_weights
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe

__all__ = ["LatentEvidence", "SpanEvidence"]

T = TypeVar("T")


class LatentEvidence(ABC):
    """Evidence in the hidden states of an unlearned model, compared with the original and the control model.

    It is evidence and no gate of the verdict, since the control model also has features of related things.

    Args:
        original: The model before unlearning.
        control: A model that never saw the rows, such as the retrained one.
    """

    name: ClassVar[str]
    """Name in reports."""

    def __init__(self, original: LitCausalLM, control: LitCausalLM) -> None:
        self.original, self.control = original, control

    @abstractmethod
    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> Any:
        """The evidence of an unlearned model on the forget rows."""

    @abstractmethod
    def cost(self, rows: int) -> Cost:
        """Cost of the evidence for a number of probes, over all models."""

    def settings(self) -> dict[str, Any]:
        """Everything that the outcome depends on beside the models, as JSON values."""
        return {}

    def _check(self, module: LitCausalLM, probes: Sequence[Probe]) -> None:
        """Refuse rows without questions, and models whose states can't be compared.

        Raises:
            ValueError: If rows are plain texts, or the models differ in form.
            MisconfigurationException: If weights are sharded.
        """
        refuse_texts(self.name, probes)
        whole_weights(self.name, self.original, self.control, module)
        check_same_form(self.name, self.original, {"control": self.control, "unlearned": module})


class SpanEvidence(LatentEvidence):
    """Evidence in the state after every block, at the positions that predict the fact in the answer.

    Args:
        original: The model before unlearning.
        control: A model that never saw the rows, such as the retrained one.
        threshold: Gap from which a layer of the control counts, in nats a token.
        batch_size: Rows in a pass; the states of all blocks are kept for each.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, original: LitCausalLM, control: LitCausalLM, threshold: float = 0.05, batch_size: int = 8
    ) -> None:
        super().__init__(original, control)
        self.threshold, self.batch_size = at_least("threshold", threshold, 0.0), at_least("batch_size", batch_size, 1)
        self._kept: tuple[list[Probe], Any] | None = None

    def settings(self) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": self.threshold}

    def _once(self, probes: Sequence[Probe], measure: Callable[[], T]) -> T:
        """Measurements of the original and the control, made once for the same rows."""
        if self._kept is None or self._kept[0] != list(probes):
            self._kept = list(probes), measure()
        found: T = self._kept[1]
        return found
