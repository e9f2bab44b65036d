"""Measurements of a report, with their intervals and what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_unlearn.core.checks import inside, one_of
from lightning_unlearn.report.fields import named, number, numbers

__all__ = ["Anchors", "Better", "Interval", "Measurement", "Outcome"]

Outcome: TypeAlias = Literal["pass", "fail", "info", "not run"]
Better: TypeAlias = Literal["", "higher", "lower", "closer to control"]


@dataclass(frozen=True)
class Interval:
    """Confidence interval; a one-sided one has a bound that is ``None``.

    Args:
        low: Lower bound.
        high: Upper bound.
        level: Confidence level in (0, 1).
        method: How it was computed, such as ``"normal"``, ``"BCa bootstrap over authors"`` or ``"Clopper-Pearson"``.

    Raises:
        ValueError: If both bounds are missing, they are in the wrong order, or the level is outside (0, 1).
    """

    low: float | None
    high: float | None
    level: float = 0.95
    method: str = ""

    def __post_init__(self) -> None:
        numbers(self, "low", "high", "level")
        inside("level", self.level, 0, 1)
        if self.low is None and self.high is None:
            raise ValueError("An interval needs a lower or an upper bound. Leave the interval out where there is none.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"An interval needs low <= high, but got low={self.low} and high={self.high}.")


@dataclass(frozen=True)
class Anchors:
    """The same measurement on the models that a value is compared with.

    Args:
        original: On the model before unlearning.
        control: On the model that has never seen the forget rows, or was retrained without them.
        chance: Of a model that guesses.
    """

    original: float | None = None
    control: float | None = None
    chance: float | None = None

    def __post_init__(self) -> None:
        numbers(self, "original", "control", "chance")


@dataclass(frozen=True)
class Measurement:
    """One number about the unlearned model, with all that is needed to judge it.

    A number that is not finite is kept as ``None`` with the reason "not finite", because JSON has no such numbers.

    Args:
        name: What was measured, such as ``"extraction strength"``. Within a section, name and variant are unique.
        value: The number; ``None`` where there is none.
        interval: Its confidence interval.
        n: Number of rows, samples or questions behind it.
        unit: ``"share"`` for a value in [0, 1] that is read as a percentage, ``"rows"`` for a count of rows out of
            ``n``, or a unit such as ``"s"``, ``"nats"`` or ``"bytes"``.
        variant: Which of several published definitions it is, such as ``"strict"`` or ``"ROUGE-L recall, stemmed"``.
        better: ``"higher"``, ``"lower"`` or ``"closer to control"``; ``""`` where neither is.
        anchors: The same number of the original model, of the control and of chance.
        outcome: ``"pass"`` or ``"fail"`` by a stated threshold, ``"info"`` where there is none, ``"not run"``.
        reason: The threshold behind an outcome, or why something was not run.

    Raises:
        ValueError: If an outcome is unknown, nothing was measured but no reason is given, or a count is negative.

    Example:
        >>> Measurement("extraction strength", 0.07, n=40, better="lower", anchors=Anchors(original=0.74, control=0.06))
        Measurement(name='extraction strength', value=0.07, ...)
        >>> Measurement("relearning", None, outcome="not run")
        Traceback (most recent call last):
        ValueError: 'relearning' has no value, so it needs a reason, such as reason='needs the depth full'.
    """

    name: str
    value: float | None
    interval: Interval | None = field(default=None, metadata={"one": Interval})
    n: int | None = None
    unit: str = ""
    variant: str = ""
    better: Better = ""
    anchors: Anchors = field(default_factory=Anchors, metadata={"one": Anchors})
    outcome: Outcome = "info"
    reason: str = ""

    def __post_init__(self) -> None:
        named(self)
        one_of("better", self.better, Better)
        one_of("outcome", self.outcome, Outcome)
        if self.value is not None and number("value", self.value) is None:
            object.__setattr__(self, "reason", self.reason or "not finite")
        numbers(self, "value")
        if self.n is not None and (isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0):
            raise ValueError(f"n must be a number of rows, 0 or more, but got {self.n!r}.")
        if self.value is None and not self.reason:
            raise ValueError(
                f"{self.name!r} has no value, so it needs a reason, such as reason='needs the depth full'."
            )
        if self.outcome == "not run" and self.value is not None:
            raise ValueError(f"{self.name!r} has the value {self.value}, so its outcome can't be 'not run'.")
        if self.outcome == "pass" and self.value is None:
            raise ValueError(f"{self.name!r} has no value, so it can't pass. Use outcome='not run' or 'fail'.")

    @property
    def key(self) -> str:
        """Name and variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name
