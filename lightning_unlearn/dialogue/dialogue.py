"""Dialogues with the ratings of their annotators."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

from lightning_unlearn.core.checks import one_of

__all__ = ["Dialogue", "Role", "Turn"]

Role = Literal["user", "assistant"]

# Not frozen, though nothing changes them: Lightning copies batches field by field, and refuses frozen classes.


@dataclass(unsafe_hash=True)
class Turn:
    """One message of a dialogue.

    Args:
        role: Who says it: ``"user"`` or ``"assistant"``.
        text: What is said.

    Raises:
        ValueError: If ``role`` is another word.
        TypeError: If ``text`` is not a string.
    """

    role: Role
    text: str

    def __post_init__(self) -> None:
        one_of("role", self.role, get_args(Role), "name the speaker of each message by one of these")
        if not isinstance(self.text, str):
            raise TypeError(f"text must be a string, but got {self.text!r}. Pass an empty string if nothing is said.")


@dataclass(unsafe_hash=True)
class Dialogue:
    """A dialogue, and how annotators have rated it.

    Args:
        id: Its name, unique within a data set. Selectors of examples leave a dialogue of the same name out.
        turns: Its messages, the oldest first.
        ratings: One rating of each annotator; none where it is not rated.
        response: Where one response is rated and not the dialogue: the response to ``turns``.
        meta: Anything else that is known, such as the system that took part.

    Raises:
        ValueError: If there is neither a turn nor a response, or a rating is NaN or infinite.
        TypeError: If ``id``, ``turns`` or ``ratings`` have another type.

    Example:
        >>> dialogue = Dialogue("1", (Turn("user", "Hi"), Turn("assistant", "Hello!")), ratings=(4, 4, 3, 3))
        >>> dialogue.mean, dialogue.majority
        (3.5, 3)
        >>> print(dialogue.text)
        USER: Hi
        ASSISTANT: Hello!
    """

    id: str
    turns: tuple[Turn, ...]
    ratings: tuple[float, ...] = ()
    response: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise TypeError(f"id must be a string, but got {self.id!r}. Pass str(id).")
        self.turns = _sequence("turns", self.turns, "Turn('user', 'Hi')")
        if wrong := [turn for turn in self.turns if not isinstance(turn, Turn)]:
            raise TypeError(
                f"Dialogue {self.id!r}: turns must be a sequence of Turn, but one is {wrong[0]!r}. Pass "
                "Turn('user', 'Hi'); JSONLDialogues reads files of chat messages."
            )
        self.ratings = tuple(map(self._number, _sequence("ratings", self.ratings, "3.0")))
        if not self.turns and self.response is None:
            raise ValueError(f"Dialogue {self.id!r} has no turns and no response, so there is nothing to rate.")

    @property
    def mean(self) -> float:
        """Mean rating.

        Raises:
            ValueError: If it is not rated.
        """
        return sum(self._rated()) / len(self.ratings)

    @property
    def majority(self) -> float:
        """The rating that most annotators give; the lowest of several.

        Raises:
            ValueError: If it is not rated.
        """
        counts = Counter(self._rated())
        most = max(counts.values())
        return min(rating for rating, count in counts.items() if count == most)

    @property
    def text(self) -> str:
        """The messages, one a line, with who says them; then the response, where one is rated."""
        lines = [f"{turn.role.upper()}: {turn.text}" for turn in self.turns]
        return "\n".join([*lines, *([f"RESPONSE: {self.response}"] if self.response is not None else [])])

    def _number(self, rating: float) -> float:
        if not isinstance(rating, Real):
            raise TypeError(
                f"Dialogue {self.id!r}: ratings must be numbers, but one is {rating!r}. Convert strings with float, "
                "and leave missing ratings out."
            )
        if not math.isfinite(rating):
            raise ValueError(f"Dialogue {self.id!r} has the rating {rating}. Leave missing ratings out.")
        return rating if isinstance(rating, (int, float)) else float(rating)

    def _rated(self) -> tuple[float, ...]:
        if not self.ratings:
            raise ValueError(
                f"Dialogue {self.id!r} has no ratings. Leave it out, or take data with ratings where scores are "
                "compared with them or examples show them."
            )
        return self.ratings


def _sequence(name: str, given: Any, example: str) -> tuple[Any, ...]:
    """The elements of a list, tuple or other iterable as a tuple."""
    if isinstance(given, (str, Turn)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{name} must be a sequence, but got {given!r}. Pass a tuple, such as ({example},).")
    return tuple(given)
