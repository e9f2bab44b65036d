"""Fingerprints of judges: their scores of dialogues that come with the library."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.dialogue.data.jsonl import read_jsonl
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.rating import RatesDialogues

__all__ = ["JudgeFingerprint", "fingerprint_dialogues"]

_DIALOGUES = Path(__file__).parents[1] / "assets" / "fingerprint_dialogues.jsonl"
_TOLERANCE = 0.4  # SmolLM2-135M in bf16 against fp32: 0.22; asked for the rating first, or with other examples: 0.5


def fingerprint_dialogues() -> list[Dialogue]:
    """The dialogues of a fingerprint: eight short ones, good and bad, of no data set.

    Example:
        >>> dialogues = fingerprint_dialogues()
        >>> len(dialogues), dialogues[0].turns[0].text
        (8, 'I need a table for four tonight, somewhere near the station.')
    """
    return read_jsonl(_DIALOGUES).dialogues


@dataclass(frozen=True)
class JudgeFingerprint:
    r"""A judge's scores $f_i$ of `fingerprint_dialogues`, by which another judge is told from it.

    A judge with the scores $g_i$ is taken for the same one if

    $$\frac1n \sum_i |f_i - g_i| \le 0.4\,\sigma,$$

    where $\sigma$ is the standard deviation of the scores that a calibration was fitted to. The limit is our own
    choice: the same judge in another precision stays below it. Another model, prompt, extractor or choice of examples
    is noticed where it changes scores by more. Dialogues for which one of the two found no rating do not count.

    Args:
        scores: The scores; NaN where no rating was found.
        spread: The standard deviation $\sigma$.
        dialogues: Hash of the dialogues: scores of other ones cannot be compared.
    """

    scores: tuple[float, ...]
    spread: float
    dialogues: str

    @classmethod
    def of(cls, scores: Sequence[float], spread: float) -> JudgeFingerprint:
        """The fingerprint of a judge.

        Args:
            scores: The judge's scores of `fingerprint_dialogues`.
            spread: Standard deviation of the scores that it is compared by.

        Raises:
            ValueError: If there is not one score a dialogue.
        """
        dialogues = fingerprint_dialogues()
        if len(scores) != len(dialogues):
            raise ValueError(
                f"There are {len(scores)} scores for the {len(dialogues)} dialogues of a fingerprint. Pass the judge, "
                "or its scores of fingerprint_dialogues()."
            )
        return cls(tuple(map(float, scores)), float(spread), _digest(dialogues))

    def check(self, judge: RatesDialogues) -> None:
        """Refuse another judge. With a fingerprint of other dialogues, of another version, it only warns.

        Args:
            judge: Rates the dialogues.

        Raises:
            ValueError: If its scores are too far from those of the fingerprint, or it finds no rating for any dialogue
                where the other judge did.
        """
        dialogues = fingerprint_dialogues()
        if _digest(dialogues) != self.dialogues or all(map(math.isnan, self.scores)):
            rank_zero_warn(
                "It cannot be checked that the calibration belongs to this judge: its own judge rated the dialogues of "
                "another version of the library, or none. Fit the calibration again with judge=."
            )
            return
        found = [rating.score for rating in judge.rate(dialogues)]
        both = [abs(own - new) for own, new in zip(self.scores, found, strict=True) if math.isfinite(own - new)]
        if not both:
            raise ValueError(
                f"The calibration belongs to another judge: this one found no rating for {len(found)} dialogues of the "
                "library, which the other one rated. Use the model, prompt and extractor that it was fitted to."
            )
        far = sum(both) / len(both)
        if far > _TOLERANCE * self.spread:
            raise ValueError(
                f"The calibration belongs to another judge. On {len(both)} dialogues of the library, this "
                f"judge's scores differ from those of that one by {far:.3f} on average, while the scores that the "
                f"calibration was fitted to have a standard deviation of {self.spread:.3f}. Use the model, prompt, "
                "examples and extractor that it was fitted to, or fit a calibration to this judge's scores."
            )

    def state_dict(self) -> dict[str, Any]:
        """It in values of JSON."""
        scores = [None if math.isnan(score) else score for score in self.scores]
        return {"scores": scores, "spread": self.spread, "dialogues": self.dialogues}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> JudgeFingerprint:
        """What ``state_dict`` has written."""
        scores = (math.nan if score is None else float(score) for score in state["scores"])
        return cls(tuple(scores), float(state["spread"]), str(state["dialogues"]))


def _digest(dialogues: Sequence[Dialogue]) -> str:
    return hashlib.sha256(repr([(part.id, part.turns) for part in dialogues]).encode()).hexdigest()
