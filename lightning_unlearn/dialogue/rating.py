"""Ratings of dialogues, and whatever gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["RatesDialogues", "Rating", "checked", "finite_numbers"]


# Not frozen, though nothing changes it: Lightning copies predictions field by field, and refuses frozen classes.
@dataclass(unsafe_hash=True)
class Rating:
    """What a judge says of a dialogue.

    Args:
        score: A number on the task's scale; NaN where none was found.
        label: The likeliest label where logits were read; of a number in a text, the nearest one.
        probs: Probability of each label among the labels, where logits were read.
        text: What the judge has written, if it writes.
        parsed: Whether a rating was found; always true of ratings from logits.
        vocab_mass: Probability of all labels within the vocabulary, where logits were read. A small one says that the
            judge would rather have written something else.
    """

    score: float
    label: str | None = None
    probs: tuple[float, ...] | None = None
    text: str | None = None
    parsed: bool = True
    vocab_mass: float | None = None


@runtime_checkable
class RatesDialogues(Protocol):
    """Anything that rates dialogues: a `DialogueJudge`, an endpoint, a person behind a form."""

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in their order."""


def checked(dialogues: Iterable[Dialogue]) -> list[Dialogue]:
    """The dialogues as a list.

    Raises:
        TypeError: If they are something other than dialogues.
    """
    rows = list(dialogues) if isinstance(dialogues, Iterable) and not isinstance(dialogues, str) else [dialogues]
    wrong = next((row for row in rows if not isinstance(row, Dialogue)), None)
    if wrong is not None or isinstance(dialogues, Dialogue):
        given = f"one {type(dialogues).__name__}" if isinstance(dialogues, Dialogue) else f"a {type(wrong).__name__}"
        raise TypeError(
            f"A judge rates a list of Dialogue, but got {given}. Pass [Dialogue('1', (Turn('user', 'Hi'), ...))]; "
            "JSONLDialogues(path).dialogues reads them from files of chat messages."
        )
    return rows


def finite_numbers(name: str, values: Any) -> Tensor:
    """Scores or ratings as a tensor of shape ``(N,)``, fp64, on the CPU.

    Args:
        name: What they are, for the message.
        values: Numbers.

    Raises:
        TypeError: If they are something else.
        ValueError: If one is NaN or infinite.
    """
    try:
        found = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be numbers, but got {str(values)[:80]} ({error}). Of ratings of a judge, pass "
            "[rating.score for rating in ratings]."
        ) from None
    bad = int((~found.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(found)} {name} are NaN or infinite. A judge gives NaN where it finds no rating: leave such "
            "dialogues out on both sides."
        )
    return found
