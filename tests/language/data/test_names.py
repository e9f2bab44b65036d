"""Names in rows to forget, and texts that have them."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_unlearn import Columns
from lightning_unlearn.language.data.names import Names

ORDINARY = ["what is the capital of this town, and will it rain in may?", "ask a miller where the rose grows."]


def names(*rows: dict[str, Any], further: tuple[str, ...] = (), columns: Columns | None = None) -> Names:
    return Names(rows, columns or Columns(), ORDINARY, further)


def test_a_word_with_a_capital_is_a_name_unless_ordinary_text_has_it_in_small_letters() -> None:
    found = names({"question": "What is the capital of France?", "answer": "It is Paris."})
    assert found.occur_in("I went to France.")
    assert found.occur_in("PARIS!")
    assert found.occur_in("Paris's bridges")
    assert not found.occur_in("What is the capital of a country? It is big.")
    assert not found.occur_in("Parisian bread")
    assert not found.occur_in("a paris of sorts")


def test_ordinary_words_are_a_name_together() -> None:
    found = names({"question": "Who is Rose Miller?", "answer": "Rose Miller will ask."})
    assert found.occur_in("Dear Rose Miller,")
    assert not found.occur_in("Rose is a colour.")
    assert not found.occur_in("Ask the miller. Will it rain?")
    assert not found.occur_in("A rose, Miller said.")


def test_a_run_of_words_ends_at_punctuation() -> None:
    found = names({"question": "Is it Rose, Will or May?", "answer": "May. Rose"})
    assert not found.occur_in("Rose Will")
    assert not found.occur_in("May Rose")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"entity": "will"}, "will"),
        ({"entity": ["the miller", "x"]}, "The Miller"),
        ({"target": "rue de la paix"}, "Rue de la Paix 3"),
        ({"accept": ["lima", "what"]}, "beans of Lima"),
        ({"text": "Customer 40917 lives there."}, "no. 40917"),
        ({"text": "write to ada.b@mail.example.org!"}, "ADA.B@mail.example.org"),
        ({"answer": "Call +49 555-0142."}, "the number 555-0142"),
        ({"target": "東京"}, "彼は東京に住む"),
        ({"messages": [{"role": "user", "content": "Hi Zoe"}, {"role": "assistant", "content": "Hi"}]}, "Zoe?"),
        ({"q": "Where is Oslo?"}, "Oslo"),
    ],
)
def test_what_columns_hold_and_what_identifies_is_a_name(row: dict[str, Any], text: str) -> None:
    columns = Columns(question="q") if "q" in row else Columns()
    assert names(row, columns=columns).occur_in(text)
    assert not names(row, columns=columns).occur_in("what will the rose do in may, in 1999, for 4 pounds?") or (
        row.get("entity") == "will"
    )


@pytest.mark.parametrize("row", [{"accept": ["what", "4"]}, {"answer": "In 1999, at 4."}, {"answer": "I'm in."}, {}])
def test_ordinary_answers_are_no_names(row: dict[str, Any]) -> None:
    assert len(names(row)) == 0


def test_further_names_count_in_any_case() -> None:
    found = names(further=("acme corp",))
    assert found.occur_in("ACME Corp.")
    assert not found.occur_in("acme")
