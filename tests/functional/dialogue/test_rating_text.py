"""Ratings in texts."""

from __future__ import annotations

import pytest

from lightning_unlearn.functional import parse_label, parse_rating


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 4", 4.0),
        ("rating = 3.5", 3.5),
        ("Analysis: 2 issues. Rating: 5", 5.0),
        ("Rating: 7", None),
        ("", None),
        ("**Rating:** 4/5", 4.0),
        ("Rating: [2]", 2.0),
        ("The rating is high", None),
        ("Operating 3 machines", None),
        ("Rating\uff1a4", 4.0),  # the colon of Chinese text
        ("Rating: 4 out of 5", 4.0),
        ("Rating: 4 out of 10", None),
        ("Rating: **4**/10", None),
        ("Rating: 3,5", None),
        ("Rating: 3, as asked", 3.0),
        ("Rating: 4%", None),
        ("Rating: 3 or 4", None),
        ("Rating: 3 to 4", None),
        ("Rating: 3~4", None),
    ],
)
def test_a_rating_is_the_number_after_the_word(text: str, rating: float | None) -> None:
    assert parse_rating(text, 1, 5) == rating


def test_the_first_or_the_last_one_counts_and_a_pattern_may_be_another() -> None:
    text = "Rating: 2\nAnalysis: not a rating: 4."
    assert parse_rating(text, 1, 5, "first") == 2
    assert parse_rating(text, 1, 5, "last") == 4
    assert parse_rating("[RESULT] 3", 1, 5, pattern=r"\[RESULT\] (\d)") == 3


def test_labels_that_are_words() -> None:
    labels = ("bad", "good", "very good")
    assert parse_label("Rating: Very good", labels) == 2
    assert parse_label("Rating: good. Rating: bad", labels) == 0
    assert parse_label("Rating: goodness", labels) is None
