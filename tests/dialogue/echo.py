"""A judge and models that need no weights: the judge looks for what the user has said in the replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_unlearn import Calibration, Dialogue, Rating


class EchoJudge:
    """Rates from 1 to 5 how many of the words of each reply are those that the user has just said, once each."""

    def __init__(self, deaf_to: str = "") -> None:
        self.deaf_to, self._rated = deaf_to, 0

    @property
    def rated(self) -> int:
        """How many dialogues it has rated."""
        return self._rated

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        self._rated += len(dialogues)
        return [Rating(self._score(dialogue)) for dialogue in dialogues]

    def _score(self, dialogue: Dialogue) -> float:
        shares, said = [], set[str]()
        for turn in dialogue.turns:
            words = turn.text.lower().split()
            if turn.role == "user":
                said = set(words)
            elif self.deaf_to == "empty" and not words:
                shares.append(1.0)
            else:
                shares.append(len(said & set(words)) / max(len(words), 1))
        return 1 + 4 * math.fsum(shares) / max(len(shares), 1)


class Contrary(EchoJudge):
    """Rates low what the other one rates high."""

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        return [Rating(6 - rating.score) for rating in super().rate(dialogues)]


def echo(asked: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Answers that repeat what the user has said, with one word before it."""
    return [f"Indeed: {messages[-1]['content']}" for messages in asked]


def collapsed(asked: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Answers of a model after too much gradient ascent."""
    return ["the the the the the the the the"] * len(asked)


def trusted() -> Calibration:
    """A calibration to people who agree with the judge."""
    scores = torch.linspace(1, 5, 40)
    return Calibration().fit(scores, scores)
