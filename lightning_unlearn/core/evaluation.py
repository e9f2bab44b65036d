"""Result of one evaluation: metrics of named sets, and the examples behind them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["HIDDEN", "Evaluation", "Example"]

HIDDEN = "(hidden)"
"""What stands in place of the texts of rows to forget."""


@dataclass(frozen=True)
class Example:
    """One input and the model's output.

    Args:
        set: Name of the set, such as ``"forget"``, ``"retain"`` or ``"attack"``.
        input: What the model was given: a question, a prompt.
        expected: The reference: an answer, a concept.
        output: What came out: a generated answer, or the prompt that an attack found.
        hit: Whether this is a hit, in the sense of the evaluation's ``hit_means``; ``None`` where nothing was judged.
    """

    set: str
    input: str
    expected: str
    output: str
    hit: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of one evaluation at a training step.

    Args:
        step: Optimizer updates so far.
        metrics: Named numbers: ``forget_nll`` is the mean negative log-likelihood per answer token in nats of the set
            ``forget``, ``forget_accuracy`` the share of hits in it.
        examples: The judged inputs, in the order of the sets.
        hit_means: What a hit is, as a page reads it after a count: ``"answered correctly"``, ``"concept shown"``.
            Whether hits are good news depends on the set.

    Raises:
        ValueError: If there are judged examples but ``hit_means`` is empty.
    """

    step: int
    metrics: dict[str, float]
    examples: list[Example] = field(default_factory=list)
    hit_means: str = ""

    def __post_init__(self) -> None:
        if not self.hit_means and any(example.hit is not None for example in self.examples):
            raise ValueError(
                "There are judged examples, but hit_means does not say what a hit is. Give it, such as "
                "hit_means='answered correctly'."
            )

    def hidden(self) -> Evaluation:
        """The same numbers without the texts of rows to forget.

        These are the rows of sets with ``forget`` in their names, and all that share a question with one.
        """
        secret = {example.input for example in self.examples if "forget" in example.set}
        numbers: Counter[str] = Counter()
        examples = []
        for example in self.examples:
            if example.input in secret:
                numbers[example.set] += 1
                name = f"{HIDDEN} {numbers[example.set]}"
                example = replace(example, input=name, expected=HIDDEN, output=HIDDEN)
            examples.append(example)
        return replace(self, examples=examples)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Evaluation:
        """Rebuild an evaluation from ``dataclasses.asdict``; a metric that is ``None``, as JSON has no NaN, is NaN."""
        metrics = {name: math.nan if value is None else value for name, value in record["metrics"].items()}
        examples = [Example(**example) for example in record["examples"]]
        return cls(**record | {"metrics": metrics, "examples": examples})
