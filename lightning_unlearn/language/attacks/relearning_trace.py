"""Knowledge of a model over the steps of a relearning attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.relearning import RelearningCurve
from lightning_unlearn.language.knowledge import Knowledge

__all__ = ["RelearningTrace", "relearning_curve"]


@dataclass(frozen=True)
class RelearningTrace:
    """What one model knows at each measurement of a relearning attack.

    Args:
        steps: Updates before each measurement.
        knowledge: What the model knows of the scored rows at each.
        taught_loss: Mean negative log-likelihood per token of the taught rows at each, in nats: whether the model has
            learned what it was taught.
        tokens: Supervised tokens that were taught, counted each time.
    """

    steps: list[int]
    knowledge: list[Knowledge]
    taught_loss: list[float]
    tokens: int

    def values(self, score: Literal["strength", "matched"] = "strength") -> list[float]:
        """Mean score of the rows at each measurement.

        Raises:
            ValueError: If the scorer did not measure it.
        """
        scores = [getattr(part, one_of("score", score, ("strength", "matched"))) for part in self.knowledge]
        if any(part is None for part in scores):
            raise ValueError(f"The scorer measured no {score}. Choose the other score.")
        return [float(part.mean()) for part in scores]


def relearning_curve(
    unlearned: RelearningTrace,
    control: RelearningTrace,
    original: RelearningTrace,
    score: Literal["strength", "matched"] = "strength",
) -> RelearningCurve:
    """Mean scores of three models that were attacked alike, with their recovered share and area as methods.

    Args:
        unlearned: Trace of the unlearned model.
        control: Trace of a model that never saw the rows.
        original: Trace of the model before unlearning.
        score: Which score.
    """
    others = (RelearningCurve(trace.steps, trace.values(score)) for trace in (control, original))
    return RelearningCurve(unlearned.steps, unlearned.values(score), *others)
