"""The text of every family as its model reads it: prompt, answer and end, and what is generated."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lightning_unlearn import LanguageDataModule, PromptFormat
from tests.zoo.families import ANSWER, FAMILIES, QUESTION, Family

ROW = {"question": QUESTION, "answer": ANSWER}

families = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: family.make_tokenizer() for name, family in FAMILIES.items()}


def surface(tokenizer: Any, ids: list[int]) -> str:
    """What tokens look like, side by side."""
    if not tokenizer.is_fast:
        return str(tokenizer.decode(ids, skip_special_tokens=False))
    text = re.sub(r"<0x(..)>", lambda byte: chr(int(byte[1], 16)), "".join(tokenizer.convert_ids_to_tokens(ids)))
    return text.replace("end▁of▁", "end_of_").replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")


def before(tokenizer: Any, family: Family) -> list[int]:
    """Tokens that the tokenizer puts before a text; chat templates write them themselves."""
    known = {"Llama 2 base": ["<s>"], "Llama 2 base, old file": ["<s>"], "OPT": ["</s>"]}
    (name,) = (name for name, other in FAMILIES.items() if other is family)
    return [tokenizer.convert_tokens_to_ids(token) for token in known.get(name, [])]


def data_of(tokenizer: Any, family: Family, **more: Any) -> LanguageDataModule:
    rows = more.pop("rows", [ROW, {**ROW, "target": "Lima"}, {"question": "Why?", "answer": "  So it is.  "}])
    data = LanguageDataModule(rows, prompt=PromptFormat(tokenizer, chat_template_kwargs=family.arguments), **more)
    data.setup("fit")
    return data


@families
@pytest.mark.filterwarnings("ignore:The chat template asks for an answer in another way")
def test_prompt_and_answer_are_the_tokens_of_one_text(name: str, tokenizers: dict[str, Any]) -> None:
    family, tokenizer = FAMILIES[name], tokenizers[name]
    data = data_of(tokenizer, family)
    whole, target, padded = data.sets["forget"].rows

    joint = tokenizer(family.prompt + family.answer, add_special_tokens=False)["input_ids"]
    assert whole.prompt + whole.answer == before(tokenizer, family) + joint
    assert surface(tokenizer, whole.answer) == family.answer.replace("end▁of▁", "end_of_")
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, **(family.arguments or {}))
        assert (family.prompt + family.answer).startswith(text.rstrip()) or text.startswith(
            family.prompt + family.answer
        )

    cut = family.prompt + family.answer[: family.answer.index("Lima") + len("Lima")]
    assert (
        target.prompt + target.answer
        == before(tokenizer, family) + tokenizer(cut, add_special_tokens=False)["input_ids"]
    )
    assert surface(tokenizer, target.answer).strip() == "Lima"
    assert target.continues_answer

    # Llama 2 and 3 and Gemma leave out the white space around an answer.
    end = family.answer.partition(ANSWER)[2].replace("end▁of▁", "end_of_")
    assert surface(tokenizer, padded.answer).strip().removesuffix(end.strip()).strip() == "So it is."


@families
def test_a_question_is_asked_as_the_template_asks_it(name: str, tokenizers: dict[str, Any]) -> None:
    family, tokenizer = FAMILIES[name], tokenizers[name]
    prompt = PromptFormat(tokenizer, chat_template_kwargs=family.arguments)
    text = family.asked or family.prompt
    assert prompt.text(QUESTION) == text
    assert prompt.prompt(QUESTION) == before(tokenizer, family) + tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template:
        asked = [{"role": "user", "content": QUESTION}]
        own = tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, **(family.arguments or {})
        )
        assert own == text


@families
@pytest.mark.filterwarnings("ignore:The chat template asks for an answer in another way")
def test_refusals_are_the_tokens_of_one_text_too(name: str, tokenizers: dict[str, Any]) -> None:
    family, tokenizer = FAMILIES[name], tokenizers[name]
    rows = [ROW, {**ROW, "target": "Lima"}]
    data = data_of(tokenizer, family, rows=rows, refusals=["I do not know.", "Not a town."])
    followers = data.followers["idk"]
    for number, context in enumerate(("", "Ada Quill was born in ")):
        for choice, refusal in enumerate(("I do not know.", "Not a town.")):
            row = followers[2 * number + choice]
            text = family.prompt + family.answer.replace(ANSWER, context + refusal)
            joint = before(tokenizer, family) + tokenizer(text, add_special_tokens=False)["input_ids"]
            assert row["prompt"] + row["answer"] == joint
            assert surface(tokenizer, row["answer"]).strip().startswith(refusal)


@families
@pytest.mark.filterwarnings("ignore:The chat template asks for an answer in another way")
def test_generation_stops_at_the_end_of_a_supervised_answer(name: str, tokenizers: dict[str, Any]) -> None:
    """A model that says what it was trained on, and then goes on and on."""
    from transformers import GenerationConfig

    from lightning_unlearn.language.generation import generate

    family, tokenizer = FAMILIES[name], tokenizers[name]
    prompt = PromptFormat(tokenizer, chat_template_kwargs=family.arguments)
    row = prompt.row(QUESTION, ANSWER)
    assert row.answer[-1] in prompt.ends

    class Model(torch.nn.Module):
        generation_config = GenerationConfig(repetition_penalty=1.3)

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def generate(self, input_ids: Any, eos_token_id: list[int], max_new_tokens: int, **_: Any) -> Any:
            said = row.answer + [row.answer[0]] * 3
            assert row.answer[-1] in eos_token_id
            return torch.cat([input_ids, torch.tensor([said])], 1)

    assert generate(Model(), prompt, [row.prompt], 99) == [ANSWER]
