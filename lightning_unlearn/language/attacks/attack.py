"""Base class of attacks on language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe

__all__ = ["Cost", "LanguageAttack"]


class Cost(NamedTuple):
    """Cost of an attack on one model, in units that do not depend on the machine.

    Args:
        passes: Forward passes over the probes.
        generations: Generated answers a probe.
        steps: Optimizer updates.
    """

    passes: float = 0.0
    generations: float = 0.0
    steps: int = 0


class LanguageAttack(ABC):
    """An attempt to get forgotten rows out of a model, measured the same way on every model.

    Weights, modes and hooks of the attacked model are the same afterwards, and the global random state is untouched.
    The same attack is run on the original and on the control model; only the comparison is meaningful.

    A subclass supplies ``knowledge``, and its constructor's arguments are its settings.
    """

    name: str
    """Name in reports, such as ``"int4"``."""
    gate: str | None = None
    """The gate of the verdict that it belongs to; ``None`` for evidence that does not enter the verdict."""

    @abstractmethod
    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Knowledge:
        """What the attacked model knows of the probes.

        Args:
            module: The model, on its device.
            probes: Questions to the forget rows.
            scorer: Measures a changed model, or changed questions.
        """

    @abstractmethod
    def cost(self, rows: int) -> Cost:
        """What the attack costs on one model with so many probes."""

    def settings(self) -> dict[str, Any]:
        """Everything that the outcome depends on, as JSON values."""
        return {}
