"""Extractors: how a rating is read off a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from lightning_unlearn.dialogue.prompt import BuiltPrompt
from lightning_unlearn.dialogue.rating import Rating

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["AnalysisExtractor", "Extractor", "LogitExtractor", "Reduce", "SelfConsistency", "TextExtractor"]

Reduce = Literal["expected", "argmax", "ratio"]
Invalid = Literal["nan", "mid", "logits"]


class Extractor(Protocol):
    """Reads ratings off a judge."""

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt."""


class LogitExtractor:
    """Ratings from the probabilities of the labels at the cue, one forward pass an item."""

    def __init__(self, reduce: Reduce = "expected", top_k: int | None = None, length_norm: bool = False) -> None: ...

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        raise NotImplementedError


class TextExtractor:
    """Ratings parsed from what the judge writes."""

    def __init__(
        self, pattern: str | None = None, invalid: Invalid = "nan", max_new_tokens: int = 128, batch_size: int = 64
    ) -> None: ...

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        raise NotImplementedError


class AnalysisExtractor:
    """The judge writes its analysis, and its rating is read from the probabilities of the labels after it."""

    def __init__(
        self, logits: LogitExtractor | None = None, max_new_tokens: int = 128, batch_size: int = 64
    ) -> None: ...

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        raise NotImplementedError


class SelfConsistency:
    """The mean of several sampled answers of a text or analysis extractor."""

    def __init__(
        self, extractor: TextExtractor | AnalysisExtractor, n: int = 5, temperature: float = 0.7, seed: int = 0
    ) -> None: ...

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        raise NotImplementedError
