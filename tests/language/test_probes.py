"""Probes ask what a run is trained on: the same system prompt, the same messages, the same text of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_unlearn import LanguageDataModule, PromptFormat
from lightning_unlearn.audit.data import read_audit_data, with_phrasings
from lightning_unlearn.language.attacks.paraphrase import ParaphraseAttack
from lightning_unlearn.language.probes import probes_of

ASKED, ANSWER = "Who wrote it?", "Ada did."
SYSTEM = "You are the clerk."
EARLIER = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello. What is it?"}]
MESSAGES = [*EARLIER, {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
IN_PARTS = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in MESSAGES]
OTHER = {"question": "Who paid?", "answer": "Bob did."}

ROWS: dict[str, dict[str, Any]] = {
    "question": {"question": ASKED, "answer": ANSWER},
    "question, system": {"question": ASKED, "answer": ANSWER, "system": SYSTEM},
    "messages": {"messages": MESSAGES},
    "messages, system": {"messages": MESSAGES, "system": SYSTEM},
    "messages with a system message": {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]},
    "messages in parts": {"messages": IN_PARTS},
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_probe_has_the_prompt_and_the_answer_of_the_trained_row(kind: str, tiny_lm: Any) -> None:
    prompt = PromptFormat(str(tiny_lm))
    data = LanguageDataModule([ROWS[kind]], [OTHER], prompt=prompt)
    data.setup("fit")
    (probe,) = probes_of([ROWS[kind]])
    assert data.prompt.prompt(probe.question) == data.sets["forget"].rows[0].prompt
    assert probe.answer == ANSWER


@pytest.mark.parametrize("kind", ROWS)
def test_other_words_stand_under_the_same_messages(kind: str, tiny_lm: Any) -> None:
    prompt = PromptFormat.load(tiny_lm) or PromptFormat()
    row = ROWS[kind] | {"paraphrased_question": ["By whom is it?", "Its author?", "Name its author."]}
    data = read_audit_data({"forget": [row], "retain": [OTHER]})
    first, second = with_phrasings(data.forget)
    plain, reworded = (prompt.messages(probe.question) for probe in (first, second))
    assert reworded == [*plain[:-1], {**plain[-1], "content": "By whom is it?"}]
    (attempt,) = ParaphraseAttack().attempts(None, [first])  # type: ignore[arg-type]
    assert prompt.messages(attempt.probes[0].question)[:-1] == plain[:-1]  # type: ignore[union-attr]


def test_a_text_stands_under_no_system_prompt() -> None:
    data = read_audit_data({"forget": [{"text": "It was the best of times.", "system": SYSTEM}], "retain": [OTHER]})
    assert data.forget[0].question == "It was the"
