"""Columns, templates over them, conversations and system prompts a row."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lightning_unlearn import Columns, LanguageDataModule, LitCausalLM, PromptFormat
from lightning_unlearn.language import causal_lm
from lightning_unlearn.language.data.token_rows import collate_tokens
from tests.helpers import trainer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Where is Lima?"},
    {"role": "assistant", "content": "In Peru, I think."},
]
TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhere is Lima?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_lm)


def ready(rows: Any, tokenizer: Any, columns: Columns | None = None, **prompt: Any) -> LanguageDataModule:
    data = LanguageDataModule(rows, columns=columns, prompt=PromptFormat(tokenizer, **prompt))
    data.setup("fit")
    return data


def texts(data: LanguageDataModule, name: str = "forget") -> list[tuple[str, str]]:
    tokenizer = data.prompt.tokenizer
    return [(tokenizer.decode(row.prompt), tokenizer.decode(row.answer)) for row in data.sets[name].rows]


def test_a_column_may_be_a_template(tokenizer: Any) -> None:
    columns = Columns(question="Where does customer {id} live?", answer="{name} lives in {town}.", target="{town}")
    rows = [{"id": 7, "name": "Ada", "town": "Lima"}, {"id": 8, "name": "Bo", "town": "Oslo"}]
    data = ready(rows, tokenizer, columns)
    assert texts(data)[1] == (
        "<|im_start|>user\nWhere does customer 8 live?<|im_end|>\n<|im_start|>assistant\nBo lives in",
        " Oslo",
    )
    assert data.questions["forget"][0]["question"] == "Where does customer 7 live?"
    assert texts(ready(rows, tokenizer, Columns(text="Customer {id}: {name}")))[0][1] == "Customer 7: Ada"


def test_a_template_needs_names_and_cells(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"names of columns, as \{name\}, but got 'Customer \{\}'"):
        Columns(text="Customer {}")
    with pytest.raises(
        ValueError, match=r"Row 1 of the forget set has None in 'name', which goes into 'I am \{name\}'"
    ):
        ready([{"name": "Ada"}, {"name": None}], tokenizer, Columns(text="I am {name}"))
    for value, kind in ((7.0, "float"), (date(2024, 5, 1), "date"), ([7], "list"), (True, "bool")):
        with pytest.raises(ValueError, match=rf"has .*, a {kind}, in 'id', which goes into 'No. \{{id\}}'"):
            ready([{"id": value}], tokenizer, Columns(text="No. {id}"))
    written = ready([{"id": 7.0, "day": date(2024, 5, 1)}], tokenizer, Columns(text="No. {id:.0f}, {day:%d %m %Y}"))
    assert texts(written)[0][1] == "No. 7, 01 05 2024"
    with pytest.raises(ValueError, match=r"has columns \['name'\], but a row needs"):
        ready([{"name": "Ada"}], tokenizer, Columns(text="I am {nam}"))


@pytest.mark.parametrize("kind", ["list", "json", "parts", "table"])
def test_the_last_answer_of_a_conversation_is_supervised(kind: str, tokenizer: Any) -> None:
    row: dict[str, Any] = {"messages": CHAT, "accept": ["Peru"]}
    if kind == "json":
        row["messages"] = json.dumps(CHAT)
    elif kind == "parts":
        row["messages"] = [
            *CHAT[:-1],
            {"role": "assistant", "content": [{"type": "text", "text": CHAT[-1]["content"]}]},
        ]
        tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "{{ m.content }}", "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
        )
    elif kind == "table":  # as rows of several kinds come from one table
        row |= {"question": None, "answer": None, "text": None, "messages": [{**m, "name": None} for m in CHAT]}
    data = ready([row], tokenizer)
    assert texts(data) == [(TEXT, "In Peru, I think.<|im_end|>")]
    (question,) = data.questions["forget"]
    assert (question["question"], question["answer"]) == ("Where is Lima?", "In Peru, I think.")
    assert question["messages"] == CHAT[:-1]
    assert question["accept"] == ["Peru"]
    refusal = data.followers["idk"][0]
    assert tokenizer.decode(refusal["prompt"]) == TEXT


def test_all_answers_of_a_conversation_may_be_supervised(tokenizer: Any) -> None:
    data = ready([{"messages": CHAT}], tokenizer, turns="all")
    batch = collate_tokens([data.sets["forget"][0]])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert tokenizer.decode(ids) == TEXT + "In Peru, I think.<|im_end|>"
    assert tokenizer.decode(ids[labels != -100]) == "Hello.<|im_end|>In Peru, I think.<|im_end|>"
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    refusal = data.followers["idk"][0]
    assert tokenizer.decode(refusal["prompt"]) == TEXT
    short = LanguageDataModule([{"messages": CHAT}], prompt=PromptFormat(tokenizer, turns="all"), max_length=40)
    short.setup("fit")
    cut = collate_tokens([short.sets["forget"][0]])
    assert torch.equal(cut["input_ids"][0], ids[:40])
    assert torch.equal(cut["labels"][0], labels[:40])


def test_a_target_may_be_in_the_last_answer(tokenizer: Any) -> None:
    data = ready([{"messages": CHAT, "target": "Peru"}], tokenizer)
    assert texts(data) == [(TEXT + "In", " Peru")]


def test_a_row_may_have_a_system_prompt_of_its_own(
    tiny_lm: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": "Hi?", "answer": "Yo.", "system": "Be loud."}, {"question": "Hi?", "answer": "Yo."}]
    data = ready(rows, tokenizer, system_prompt="Be brief.")
    assert [prompt.partition("<|im_end|>")[0] for prompt, _ in texts(data)] == [
        "<|im_start|>system\nBe loud.",
        "<|im_start|>system\nBe brief.",
    ]
    assert data.questions["forget"][0]["messages"][0] == {"role": "system", "content": "Be loud."}
    module, asked = LitCausalLM(str(tiny_lm)), []
    answer = causal_lm.generate_all
    monkeypatch.setattr(causal_lm, "generate_all", lambda *args: asked.extend(args[2]) or answer(*args))
    trainer().predict(module, LanguageDataModule(rows, prompt=PromptFormat(system_prompt="Be brief.")))
    read = list(map(tokenizer.decode, asked))
    assert sum("Be loud." in text for text in read) == sum("Be brief." in text for text in read) == 1
    with pytest.raises(ValueError, match=r"no chat template for system_prompt to go into.*with \{system\}"):
        ready(rows, tokenizer, prompt_format="{question} ")
    plain = ready(rows[:1], tokenizer, prompt_format="{system} {question} ")
    assert texts(plain) == [("Be loud. Hi?", " Yo.<|im_end|>")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("no json", r"Row 0 of the forget set has no JSON in 'messages'"),
        ([{"from": "human", "value": "Hi?"}], r"needs a list of messages, each a dict with 'role' and 'content'"),
        (CHAT[:-1], r"roles \['system', 'user', 'assistant', 'user'\], but needs a question and, as the last message"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ready([{"messages": messages}], tokenizer)
