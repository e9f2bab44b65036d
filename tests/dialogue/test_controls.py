from __future__ import annotations

import math

import pytest

from lightning_unlearn import (
    Dialogue,
    Turn,
    control_dialogues,
    controls_of,
    converse,
    neutral_seeds,
    refusal_dialogues,
)
from lightning_unlearn.dialogue.quality import control_ratings, rated
from tests.dialogue.echo import EchoJudge, echo


def dialogue(name: str, *texts: str, of: str = "neutral") -> Dialogue:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(texts))  # type: ignore[arg-type]
    return Dialogue(name, turns, meta={"set": of})


FEW = [dialogue(str(i), f"question {i}", f"answer {i} is long", f"more {i}", f"reply {i} as well") for i in range(6)]


def replies(part: Dialogue) -> list[str]:
    return [turn.text for turn in part.turns if turn.role == "assistant"]


def test_each_kind_of_control_is_bad_in_its_way() -> None:
    made = control_dialogues(FEW)
    assert list(made) == ["shuffled", "repeated", "empty", "swapped"]
    assert all([part.id for part in controls] == [part.id for part in FEW] for controls in made.values())
    for before, shuffled, repeated, empty, swapped in zip(FEW, *made.values(), strict=True):
        assert shuffled.turns != before.turns
        assert sorted(t.text for t in shuffled.turns) == sorted(t.text for t in before.turns)
        assert replies(empty) == ["", ""]
        assert not set(replies(swapped)) & set(replies(before))
        assert set(replies(swapped)) <= {text for part in FEW for text in replies(part)}
        for text in replies(repeated):
            assert len(text) >= 40
            assert len(set(text.split())) <= 3  # a character, a word or two; the last one may be cut
        users = [[t.text for t in part.turns if t.role == "user"] for part in (before, repeated, empty, swapped)]
        assert users == [users[0]] * 4
    assert control_dialogues(FEW) == made  # the same each time
    assert control_dialogues(FEW, seed=1)["swapped"] != made["swapped"]


def test_what_cannot_be_made_is_left_out_and_the_judge_is_not_taken_for_valid() -> None:
    same = [dialogue("1", "a", "b"), dialogue("2", "c", "b")]
    made = control_dialogues(same)
    assert made["swapped"] == []
    assert control_dialogues([Dialogue("1", (Turn("assistant", "b"),))])["shuffled"] == []
    found = controls_of([1.0, 2.0], {"swapped": []})
    assert math.isnan(found.auc["swapped"].value)
    assert not found.valid
    assert found.failed == ["swapped"]


def test_replies_about_forgotten_rows_do_not_go_into_other_dialogues() -> None:
    secret = [dialogue(f"s{i}", "who?", f"Ada lives at {i} Wells Street", of="forget") for i in range(5)]
    for seed in range(5):
        swapped = control_dialogues([*FEW, *secret], seed)["swapped"]
        assert not any("Ada" in text for part in swapped for text in replies(part))
    assert any("Ada" in text for part in control_dialogues(secret)["swapped"] for text in replies(part))


def test_auc_counts_ties_half_and_missing_ratings_as_not_told() -> None:
    found = controls_of([3, 4, 5], {"empty": [1, 2, 3], "swapped": [3, 4, 5], "repeated": [1, 2, 2]})
    assert found.auc["empty"].value == pytest.approx(8.5 / 9)
    assert found.auc["swapped"].value == 0.5
    assert found.auc["repeated"][:2] == (1.0, 1.0)
    assert found.failed == ["swapped"]
    assert "swapped 0.50" in found.reason
    # Ratings that are missing must not make a judge look better.
    assert controls_of([3, 4], {"empty": [math.nan, math.nan]}).auc["empty"].value == 0
    assert controls_of([math.nan, 4], {"empty": [1, 2]}).auc["empty"].value == 0.5
    assert controls_of([2.0, 3.0], {"empty": [1.0, 1.5]}).valid
    assert controls_of([2.0, 3.0], {"empty": [1.0, 2.5]}).failed == ["empty"]  # 0.75 < 0.8
    with pytest.raises(ValueError, match="least must be in"):
        controls_of([1.0], {}, least=0.3)


def test_a_judge_that_reads_tells_all_controls_and_a_deaf_one_does_not() -> None:
    dialogues = converse(neutral_seeds(), echo)
    for judge, failed in ((EchoJudge(), []), (EchoJudge(deaf_to="empty"), ["empty"])):
        scores = rated(judge, dialogues)
        controls, made, _ = control_ratings(judge, dialogues, scores)
        assert controls.failed == failed
        assert controls.counts == dict.fromkeys(made, 24)
        assert controls.refusals is None  # no rows to forget, so nothing to refuse


def test_refusals_must_be_rated_above_repeated_words() -> None:
    asked = [dialogue(str(i), "do you know?", "yes", of="forget") for i in range(3)]
    texts = [replies(part)[0] for part in refusal_dialogues(asked)]
    assert texts[0] == "I don't know."
    assert len(set(texts)) == 3
    fine = controls_of([3, 4], {"empty": [1, 2]}, ([3.0, 3.0], [1.0, 2.0]))
    poor = controls_of([3, 4], {"empty": [1, 2]}, ([1.0, 1.0], [1.0, 2.0]))
    assert (fine.refusals_valid, fine.reason) == (True, "")
    assert (poor.valid, poor.refusals_valid) == (True, False)
    assert "refusals" in poor.reason
