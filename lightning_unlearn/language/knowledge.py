"""Knowledge of rows as every attack measures it: a likelihood score and an answer score for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe

__all__ = ["Knowledge", "Scorer"]


@dataclass(frozen=True)
class Knowledge:
    """What a model knows of some probes; each score is in [0, 1], and higher is more knowledge.

    Args:
        strength: Score of the likelihoods, such as strict extraction strength, shape ``(N,)``, fp32; ``None`` where an
            attack has answers alone.
        matched: Share of the answers that are right, shape ``(N,)``, fp32; ``None`` where an attack has likelihoods
            alone.
        answers: The generated answers of each probe.
    """

    strength: Tensor | None
    matched: Tensor | None
    answers: list[list[str]] = field(default_factory=list)


Scorer: TypeAlias = Callable[[LitCausalLM, Sequence[Probe]], Knowledge]
"""``(module, probes) -> Knowledge``: what attacks call for each changed model or changed question."""
