"""Rating tasks: what is rated, and on which scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_unlearn.core.checks import one_of

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["FED_OVERALL", "SATISFACTION", "USR_OVERALL", "RatingTask", "task_of"]


@dataclass(frozen=True)
class RatingTask:
    """A scale of labels, and what they say about a dialogue.

    Args:
        name: Name of the task.
        labels: What a judge writes, from the lowest to the highest.
        values: The number that each label stands for, increasing.
        rubric: What each label means.
        aspect: What is rated, in a noun phrase.
        instruction: What the judge is asked to do.

    Raises:
        ValueError: If there are fewer than two labels, two of them are the same, the values do not increase, or the
            labels, values and rubric are not of one length.

    Example:
        >>> SATISFACTION.values[SATISFACTION.nearest(3.4)]
        3.0
    """

    name: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    rubric: tuple[str, ...]
    aspect: str
    instruction: str

    def __post_init__(self) -> None:
        for name in ("labels", "values", "rubric"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, as YAML has them
        if not len(self.labels) == len(self.values) == len(self.rubric):
            raise ValueError(
                f"A task has a value and a line of its rubric for each label, but got {len(self.labels)} labels, "
                f"{len(self.values)} values and {len(self.rubric)} lines."
            )
        if len(set(self.labels)) < max(2, len(self.labels)) or any(label != label.strip() for label in self.labels):
            raise ValueError(
                f"labels must be at least two different words without space around them, but got {self.labels}."
            )
        if any(low >= high for low, high in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"values must increase, as the labels do, but got {self.values}.")

    @property
    def middle(self) -> float:
        """The middle of the scale."""
        return (self.values[0] + self.values[-1]) / 2

    @property
    def numeric(self) -> bool:
        """Whether each label is the number that it stands for."""
        return all(_number(label) == value for label, value in zip(self.labels, self.values, strict=True))

    def check_on_scale(self, dialogue: Dialogue) -> None:
        """Refuse ratings of annotators that are outside the scale.

        Args:
            dialogue: A dialogue, with or without ratings.

        Raises:
            ValueError: If a rating is outside.
        """
        low, high = self.values[0], self.values[-1]
        wrong = next((rating for rating in dialogue.ratings if not low <= rating <= high), None)
        if wrong is not None:
            raise ValueError(
                f"Dialogue {dialogue.id!r} has the rating {wrong:g}, but the task {self.name!r} goes from {low:g} to "
                f"{high:g}. Pass the task whose scale the annotators used ('satisfaction', 'fed_overall', "
                "'usr_overall', or a RatingTask of your own)."
            )

    def nearest(self, value: float) -> int:
        """Number of the label whose value is nearest; the lower of two."""
        return min(range(len(self.values)), key=lambda label: (abs(self.values[label] - value), label))


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


SATISFACTION = RatingTask(
    name="satisfaction",
    labels=("1", "2", "3", "4", "5"),
    values=(1.0, 2.0, 3.0, 4.0, 5.0),
    rubric=(
        "very dissatisfied: the assistant does not understand the request, or does nothing for it",
        "dissatisfied: the assistant understands the request, but does not fulfil it well",
        "normal: the assistant does what is asked, with detours or in part",
        "satisfied: the assistant fulfils the request",
        "very satisfied: the assistant fulfils the request quickly and in full",
    ),
    aspect="the user's satisfaction",
    instruction="You rate how satisfied the user is with the assistant in a dialogue.",
)
"""Satisfaction of the user of a task-oriented assistant, from 1 to 5, as in USS."""

FED_OVERALL = RatingTask(
    name="fed_overall",
    labels=("0", "1", "2", "3", "4"),
    values=(0.0, 1.0, 2.0, 3.0, 4.0),
    rubric=("very bad", "bad", "neither good nor bad", "good", "very good"),
    aspect="the overall quality",
    instruction="You rate how good the assistant is at holding a conversation.",
)
"""Overall quality of an open conversation or of a response in it, from 0 to 4, as in FED."""

USR_OVERALL = RatingTask(
    name="usr_overall",
    labels=("1", "2", "3", "4", "5"),
    values=(1.0, 2.0, 3.0, 4.0, 5.0),
    rubric=("very bad", "bad", "neither good nor bad", "good", "very good"),
    aspect="the overall quality of the response",
    instruction="You rate how good a response is as the next message of a conversation.",
)
"""Overall quality of a response, from 1 to 5, as in USR."""

_TASKS = {task.name: task for task in (SATISFACTION, FED_OVERALL, USR_OVERALL)}


def task_of(task: RatingTask | str) -> RatingTask:
    """A task, or the one that comes with the library by that name.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(task, RatingTask):
        return task
    return _TASKS[one_of("task", task, tuple(_TASKS), "another scale is a RatingTask of your own")]
