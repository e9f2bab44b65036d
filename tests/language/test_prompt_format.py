"""Prompts and answers as tokens: chat templates, plain formats, targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightning_unlearn import LanguageDataModule, LitCausalLM, PromptFormat
from tests.user_module import trainer


@pytest.fixture
def tokenizer(tiny_lm: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.fixture
def plain(tokenizer: Any) -> Any:
    """The same without a chat template, as of a base model."""
    tokenizer.chat_template = None
    return tokenizer


def test_a_chat_prompt_ends_where_the_assistants_turn_begins(tokenizer: Any) -> None:
    prompt = PromptFormat(tokenizer, system_prompt="Be brief.")
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.text("Hi?") == expected
    assert tokenizer.decode(prompt.prompt("Hi?")) == expected
    assert prompt.prompt("Hi?") == tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}],
        add_generation_prompt=True,
        return_dict=False,
    )


def test_special_tokens_are_those_of_the_template_or_of_the_tokenizer_and_never_both(plain: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    start = plain.convert_tokens_to_ids("<|im_start|>")
    plain.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert PromptFormat(plain).prompt("Hi?").count(start) == 1
    assert start not in PromptFormat(plain).row("Hi?", "Yes.").answer
    plain.chat_template = "{{ '<|im_start|>' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert PromptFormat(plain).prompt("Hi?").count(start) == 1
    assert start not in PromptFormat(plain).row("Hi?", "Yes.").answer


@pytest.mark.parametrize(
    ("prompt_format", "prompt", "answer"),
    [
        (None, "Question: Hi?\nAnswer:", " Paris."),
        ("Q: {question}\nA: ", "Q: Hi?\nA:", " Paris."),
        ("Q: {question}\n", "Q: Hi?", "\nParis."),  # and not the space before the question
        ("{question}", "Hi?", "Paris."),
    ],
)
def test_white_space_before_a_plain_answer_belongs_to_the_answer(
    prompt_format: str | None, prompt: str, answer: str, plain: Any
) -> None:
    row = PromptFormat(plain, prompt_format=prompt_format).row("Hi?", "Paris.")
    assert plain.decode(row.prompt) == prompt
    assert plain.decode(row.answer) == f"{answer}<|im_end|>"
    assert not row.continues_answer


@pytest.mark.parametrize(
    ("answer", "target", "context", "supervised"),
    [("It is Paris, of course.", "Paris", "It is", " Paris"), ("Paris it is.", "Paris", "", "Paris")],
)
def test_a_target_is_what_is_supervised(
    answer: str, target: str, context: str, supervised: str, tokenizer: Any
) -> None:
    prompt = PromptFormat(tokenizer)
    row = prompt.row("Hi?", answer, target)
    assert tokenizer.decode(row.prompt) == prompt.text("Hi?") + context
    assert tokenizer.decode(row.answer) == supervised
    assert row.continues_answer is bool(context)


def test_a_system_prompt_needs_a_chat_template(plain: Any) -> None:
    with pytest.raises(ValueError, match="system_prompt is a part of the chat template, which prompt_format replaces"):
        PromptFormat(plain, "Be brief.", "{question}")
    with pytest.raises(ValueError, match=r"no chat template for system_prompt to go into.*prompt_format"):
        PromptFormat(plain, "Be brief.").prompt("Hi?")


def test_a_model_answers_in_the_format_of_its_data_module(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = LitCausalLM(str(tiny_lm))
    asked: list[list[int]] = []
    generate = module.model.generate
    monkeypatch.setattr(
        module.model,
        "generate",
        lambda input_ids, **kw: asked.append(input_ids[0].tolist()) or generate(input_ids, **kw),
    )
    module.answer(["Hi?"], max_new_tokens=1)
    assert asked.pop() == PromptFormat(module.tokenizer).prompt("Hi?")
    prompt = PromptFormat(prompt_format="Q: {question} A:")
    data = LanguageDataModule([{"question": "Hi?", "answer": "Paris."}], prompt=prompt)
    trainer().predict(module, data)
    assert module.tokenizer.decode(asked.pop()) == "Q: Hi? A:"
    assert prompt.tokenizer is None  # the format that was given stays as it is
