"""Dialogues that are not what they should be are refused where they are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_unlearn import FED_OVERALL, SATISFACTION, Dialogue, DialogueJudge, JudgePrompt, RatingMetrics, Turn
from lightning_unlearn.dialogue.extractors import TextExtractor
from lightning_unlearn.dialogue.probe import ProbeExtractor
from lightning_unlearn.dialogue.tuning import JudgeTuning
from tests.dialogue import families

TURNS = (Turn("user", "Hi"), Turn("assistant", "Hello"))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"ratings": ("3", "4")}, TypeError, "ratings must be numbers, but one is '3'"),
        ({"ratings": (None, 3)}, TypeError, "leave missing ratings out"),
        ({"ratings": 3.0}, TypeError, r"ratings must be a sequence, but got 3.0. Pass a tuple, such as \(3.0,\)"),
        ({"ratings": (float("nan"), 3)}, ValueError, "has the rating nan. Leave missing ratings out"),
        ({"turns": [{"role": "user", "content": "Hi"}]}, TypeError, "turns must be a sequence of Turn"),
        ({"turns": TURNS[0]}, TypeError, "turns must be a sequence"),
        ({"turns": "Hi"}, TypeError, "turns must be a sequence"),
        ({"id": 7}, TypeError, r"id must be a string, but got 7. Pass str\(id\)"),
    ],
)
def test_other_types_are_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dialogue(**{"id": "1", "turns": TURNS, **given})


def test_a_message_without_a_text_is_refused() -> None:
    with pytest.raises(TypeError, match="text must be a string, but got None"):
        Turn("user", None)  # type: ignore[arg-type]


def test_lists_and_numbers_of_numpy_are_taken() -> None:
    made = Dialogue("1", list(TURNS), list(np.array([3, 4])))  # type: ignore[arg-type]
    assert made == Dialogue("1", TURNS, (3, 4))
    assert hash(made) == hash(Dialogue("1", TURNS, (3, 4)))
    assert {type(rating) for rating in made.ratings} == {float}


def test_ratings_of_another_scale_are_refused_wherever_they_count() -> None:
    """A 5 is not the 4 of a scale from 0 to 4, and a 0 not the 1 of one from 1 to 5."""
    five, zero = Dialogue("five", TURNS, (4, 5)), Dialogue("zero", TURNS, (0,))
    message = r"Dialogue 'five' has the rating 5, but the task 'fed_overall' goes from 0 to 4\. Pass the task whose"
    lm = families.language_model("gpt2", families.byte_level())
    judge = DialogueJudge(lm, task="fed_overall", pool=[five], shots=1)
    for use in (
        lambda: RatingMetrics(FED_OVERALL).update([3.0], [five]),
        lambda: JudgePrompt(FED_OVERALL).answer(five),
        lambda: judge.rate([zero]),
        *(lambda t=t: JudgeTuning(t, shots=0).losses(judge, [five]) for t in ("majority", "sampled", "soft", "mean")),
        lambda: DialogueJudge(lm, task="fed_overall", extractor=ProbeExtractor()).fit_probe([five] * 8),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match="has the rating 0, but the task 'satisfaction' goes from 1 to 5"):
        RatingMetrics(SATISFACTION).update([3.0], [zero])


@pytest.mark.parametrize("pattern", [r"score: (\w+)", r"score:( \d)?"])
def test_a_pattern_that_finds_no_number_finds_no_rating(pattern: str) -> None:
    assert not TextExtractor(pattern=pattern).read(JudgePrompt(), "score: good").parsed
