"""Whole words in any script, and the whole answer."""

from __future__ import annotations

import pytest

from lightning_unlearn.language.matching import contains_words, same_text


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("The capital is ROME.", "Rome"),
        ("Rome's streets", "Rome"),
        ("Rome", "Rome."),
        ("It is “Rome”.", "rome"),
        ("It lies in Washington, D.C., of course", "Washington, D.C."),
        ("new\nYork City", "New York"),
        ("Côte d'Ivoire", "co\u0302te d'ivoire"),  # the same letters, composed and not
        ("STRASSE 4", "Straße"),
        ("Written in C++.", "C++"),
        ("At 4.5 degrees", "4.5"),
        ("中国的首都是北京。", "北京"),
        ("서울입니다", "서울"),
        ("Jerome, then Rome", "Rome"),
        ("In 1,000 years", "1,000"),
        ("It has 1.000.000,5 of them", "1.000.000,5"),
        ("There are 4, not 5.", "4"),
        ("Step 4.", "4"),
        ("born on 4.5.2024 in Lima", "2024"),
        ("the years 1999–2004", "1999"),
        ("it is -4 °C", "−4"),
        ("有4个", "4"),
        ("４月です", "4"),
        ("\uff32\uff2f\uff2d\uff25", "rome"),  # full-width letters
        ("COVID-19", "19"),
        ("Côte d’Ivoire", "Côte d'Ivoire"),
        ("l'Italie", "Italie"),
        ("_Rome_", "Rome"),
        ("Rome-based", "Rome"),
        ("ভারত।", "ভারত"),
        ("A+B", "A"),
    ],
)
def test_whole_words_match(text: str, accepted: str) -> None:
    assert contains_words(text, accepted)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("Romania", "Oman"),
        ("Romania", "Roma"),
        ("Jerome", "Rome"),
        ("44", "4"),
        ("भारती", "भारत"),  # a vowel sign is a part of the word
        ("Москвач", "Москва"),
        ("anything", ""),
        ("At 4.5 degrees", "4"),
        ("At 4.5 degrees", "5"),
        ("At 4,5 degrees", "4"),
        ("有4.5个", "4"),
        ("In 1,000 years", "1"),
        ("In 1,000 years", "000"),
        ("In 12,000,500 years", "12,000"),
        ("It is -4 °C", "4"),
        ("It is 14.", "4"),
        ("We can't say.", "can"),
        ("Written in C++.", "C"),
        ("Written in C#", "C"),
        ("O'Brien", "O"),
        ("4km", "4"),
    ],
)
def test_parts_of_words_do_not(text: str, accepted: str) -> None:
    assert accepted.lower() in text.lower()
    assert not contains_words(text, accepted)


def test_a_sign_is_a_part_of_a_name() -> None:
    assert not contains_words("Written in C.", "C#")
    assert not same_text("C", "C#")


@pytest.mark.parametrize("text", ["Rome", " rome.", "“ROME!”"])
def test_an_exact_match_is_the_whole_answer(text: str) -> None:
    assert same_text(text, "Rome")
    assert not same_text(f"It is {text}", "Rome")
