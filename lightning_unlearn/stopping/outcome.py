"""Outcome of a run that was to end when enough is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StopOutcome"]


@dataclass(frozen=True)
class StopOutcome:
    """Whether a run has forgotten enough, and the step whose weights the module has.

    Likelihoods are in nats per supervised position: of forget rows that of their mean probability, of others the mean.

    Args:
        reached: Whether the forget rows reached the target while nothing that is to stay lost more than the margin.
        step: The update after which the module had the weights that it has now.
        steps: Updates that the run has made.
        forget_nll: Of the forget rows, with these weights.
        target: What they were to reach.
        source: What the target is, in words.
        lost: Rise of what is to stay, by set, since the start.
        margin: The most that each may rise; ``None`` where nothing was watched.
    """

    reached: bool
    step: int
    steps: int
    forget_nll: float
    target: float
    source: str
    lost: dict[str, float]
    margin: float | None

    def __str__(self) -> str:
        verb = "Reached" if self.reached else "Not reached"
        back = "" if self.step == self.steps else f" of {self.steps}"
        changes = "".join(f", {name} has changed by {value:+.2f}" for name, value in self.lost.items())
        limit = f" and may rise by {self.margin:g}" if changes and self.margin is not None else ""
        return (
            f"{verb}: after step {self.step}{back} the forget rows are at {self.forget_nll:.2f} nats, the target is "
            f"{self.target:.2f} ({self.source}){changes}{limit}."
        )
