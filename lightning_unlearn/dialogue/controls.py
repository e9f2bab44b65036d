"""Known-bad controls of a judge: dialogues that it must rate below the ones they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Literal

import torch

from lightning_unlearn.core.checks import between
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.functional.roc import auc, delong

__all__ = ["MIN_AUC", "Control", "Controls", "control_dialogues", "controls_of", "refusal_dialogues"]

Control = Literal["shuffled", "repeated", "empty", "swapped"]

MIN_AUC = 0.8
"""Least AUC of originals over each kind of control; below it, the ratings are invalid."""

_REFUSALS = Path(__file__).parents[1] / "assets" / "refusals.txt"
_LEAST = 48  # characters of a repeated reply


@dataclass(frozen=True)
class Controls:
    """Whether a judge rates originals above their controls.

    Args:
        auc: By kind, the AUC of originals over controls, with its DeLong interval; NaN where none could be made.
        counts: By kind, the number of controls.
        refusals: The AUC of refusals over repeated replies on the same dialogues; ``None`` if not measured.
        least: Least AUC of each.
    """

    auc: Mapping[str, Interval]
    counts: Mapping[str, int] = field(default_factory=dict)
    refusals: Interval | None = None
    least: float = MIN_AUC

    @property
    def failed(self) -> list[str]:
        """Kinds whose AUC is too low."""
        return [kind for kind, found in self.auc.items() if not found.value >= self.least]

    @property
    def valid(self) -> bool:
        """Whether the AUC of each kind is high enough."""
        return bool(self.auc) and not self.failed

    @property
    def refusals_valid(self) -> bool:
        """Whether refusals were rated above repeated replies, or that was not measured."""
        return self.refusals is None or self.refusals.value >= self.least

    @property
    def reason(self) -> str:
        """Why the ratings are invalid; empty if they are valid."""
        if not self.valid:
            told = ", ".join(f"{kind} {self.auc[kind].value:.2f}" for kind in self.failed)
            return f"the judge does not tell known-bad controls from originals (AUC of {told}; at least {self.least})"
        if not self.refusals_valid:
            assert self.refusals is not None
            return (
                f"the judge does not rate refusals above repeated words (AUC {self.refusals.value:.2f}; at least "
                f"{self.least})"
            )
        return ""


def control_dialogues(dialogues: Sequence[Dialogue], seed: int = 0) -> dict[Control, list[Dialogue]]:
    """Known-bad controls of dialogues.

    ``"shuffled"``: the messages in another order. ``"repeated"``: replies that repeat a character, a word or two words
    to the length of the original, as models do that gradient ascent has taken apart. ``"empty"``: empty replies.
    ``"swapped"``: the replies of another dialogue, and never of one about what is to be forgotten where there are
    others.

    Args:
        dialogues: Dialogues with replies of the assistant.
        seed: Seed of the draws.

    Returns:
        By kind, one control a dialogue with the same ``id``, but for those of which none can be made: nothing is
        shuffled in a dialogue of one message, nothing swapped where all replies are the same.

    Example:
        >>> from lightning_unlearn import Turn
        >>> dialogue = Dialogue("1", (Turn("user", "Hi"), Turn("assistant", "Hello, and welcome!")))
        >>> control_dialogues([dialogue])["empty"][0].turns[1]
        Turn(role='assistant', text='')
    """
    makers: dict[Control, Callable[[int], Dialogue | None]] = {
        "shuffled": lambda i: _shuffled(dialogues[i], Random(f"{seed} shuffled {dialogues[i].id}")),
        "repeated": lambda i: _replied(dialogues[i], lambda text, turn: _repeated(text, i)),
        "empty": lambda i: _replied(dialogues[i], lambda text, turn: ""),
        "swapped": lambda i: _swapped(dialogues, i, Random(f"{seed} swapped {dialogues[i].id}")),
    }
    made = {kind: [make(number) for number in range(len(dialogues))] for kind, make in makers.items()}
    return {kind: [control for control in controls if control is not None] for kind, controls in made.items()}


def refusal_dialogues(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """The same dialogues with graceful refusals as replies.

    Args:
        dialogues: Dialogues with replies of the assistant.

    Example:
        >>> from lightning_unlearn import Turn
        >>> dialogue = Dialogue("1", (Turn("user", "Who is Ada?"), Turn("assistant", "A countess.")))
        >>> refusal_dialogues([dialogue])[0].turns[1].text
        "I don't know."
    """
    texts = _REFUSALS.read_text(encoding="utf-8").splitlines()
    return [
        _replied(dialogue, lambda _, turn, number=number: texts[(number + turn) % len(texts)])  # type: ignore[misc]
        for number, dialogue in enumerate(dialogues)
    ]


def controls_of(
    originals: Sequence[float],
    controls: Mapping[str, Sequence[float]],
    refusals: tuple[Sequence[float], Sequence[float]] | None = None,
    least: float = MIN_AUC,
) -> Controls:
    r"""Whether the ratings of originals are above those of their controls.

    Of each kind, $\mathrm{AUC} = P(s_{\mathrm{original}} > s_{\mathrm{control}}) + \tfrac12 P(s_{\mathrm{original}} =
    s_{\mathrm{control}})$. A missing rating counts against the judge: that of an original as the lowest, that of a
    control as the highest.

    Args:
        originals: Ratings of the originals; NaN where there is none.
        controls: By kind, ratings of the controls.
        refusals: Ratings of refusals, and of repeated replies on the same dialogues.
        least: AUC that each kind must reach, in [0.5, 1].

    Raises:
        ValueError: If ``least`` is out of range.

    Example:
        >>> found = controls_of([3.0, 4.0, 5.0], {"empty": [1.0, 2.0, 3.0], "swapped": [4.0, 3.0, 5.0]})
        >>> round(found.auc["empty"].value, 4), found.failed
        (0.9444, ['swapped'])
    """
    between("least", least, 0.5, 1)
    found = {kind: _auc(originals, ratings) for kind, ratings in controls.items()}
    counts = {kind: len(ratings) for kind, ratings in controls.items()}
    return Controls(found, counts, None if refusals is None else _auc(*refusals), least)


def _auc(above: Sequence[float], below: Sequence[float]) -> Interval:
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    if not above or not below:
        return nothing
    positive = torch.nan_to_num(torch.tensor(above, dtype=torch.float64), -1e9)
    negative = torch.nan_to_num(torch.tensor(below, dtype=torch.float64), 1e9)
    if len(positive) < 2 or len(negative) < 2:
        return Interval(float(auc(positive, negative)), 0.0, 1.0)
    area, error = delong(positive, negative)
    width = NormalDist().inv_cdf(0.975) * error
    return Interval(float(area), float((area - width).clamp(min=0)), float((area + width).clamp(max=1)))


def _replied(dialogue: Dialogue, reply: Callable[[str, int], str]) -> Dialogue:
    """The dialogue with other replies, each made of the old one and its number."""
    texts = iter(range(len(dialogue.turns)))
    turns = tuple(
        replace(turn, text=reply(turn.text, next(texts))) if turn.role == "assistant" else turn
        for turn in dialogue.turns
    )
    return replace(dialogue, turns=turns)


def _repeated(text: str, number: int) -> str:
    """What repeats a character, the first word or the first two words of a text, to its length."""
    words = text.split() or ["the"]
    unit = (words[0][:1], f"{words[0]} ", f"{' '.join(words[:2])} ")[number % 3]
    size = max(_LEAST, len(text))
    return (unit * (size // len(unit) + 1))[:size].strip()


def _shuffled(dialogue: Dialogue, random: Random) -> Dialogue | None:
    """The dialogue with its messages in another order, such that it reads in another way."""
    order = list(dialogue.turns)
    for _ in range(16):
        random.shuffle(order)
        if tuple(order) != dialogue.turns:
            return replace(dialogue, turns=tuple(order))
    return None


def _swapped(dialogues: Sequence[Dialogue], place: int, random: Random) -> Dialogue | None:
    """The dialogue with the replies of another one, none of which is its own."""
    own = _replies(dialogues[place])
    others = [other for number, other in enumerate(dialogues) if number != place and set(_replies(other)) - set(own)]
    public = [other for other in others if other.meta.get("set") != "forget"]
    if not others:
        return None
    donor = [text for text in _replies(random.choice(public or others)) if text not in own]
    return _replied(dialogues[place], lambda _, turn: donor[turn % len(donor)])


def _replies(dialogue: Dialogue) -> list[str]:
    return [turn.text for turn in dialogue.turns if turn.role == "assistant"]
