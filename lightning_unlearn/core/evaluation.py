"""Records of evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Answer", "Evaluation"]


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        set: Name of the question set, such as ``"forget"``, ``"retain"`` or ``"heldout"``.
        question: The question as the user would ask it.
        expected: The reference answer.
        text: What the model said.
        correct: Whether ``text`` contains one of the accepted answers; ``None`` where the set names none.
    """

    set: str
    question: str
    expected: str
    text: str
    correct: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that was measured at one training step.

    Args:
        step: Optimizer updates made so far.
        metrics: Named numbers: ``forget_nll`` is the mean negative log-likelihood per answer token in nats of the set
            ``forget``, ``forget_accuracy`` the share of its questions answered correctly.
        answers: The generated answers, in the order of the question sets.
    """

    step: int
    metrics: dict[str, float]
    answers: list[Answer] = field(default_factory=list)
