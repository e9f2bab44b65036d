"""Prompts and answers as tokens: chat templates, plain formats, targets."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightning_unlearn import LanguageDataModule, LitCausalLM, PromptFormat
from tests.user_module import trainer
from tests.zoo.families import FAMILIES


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


def templated(name: str, template: str) -> Any:
    tokenizer = FAMILIES[name].make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("name", "says"), [("Gemma", "System role not supported"), ("Llama 2", "leaves the system")])
def test_a_system_prompt_that_the_template_does_not_write_is_refused(name: str, says: str) -> None:
    prompt = PromptFormat(FAMILIES[name].make_tokenizer(), system_prompt="Be brief.")
    with pytest.raises(ValueError, match=says):
        prompt.prompt("Hi?")
    with pytest.raises(ValueError, match=r"put its text into the question|Put its text into the question"):
        prompt.row("Hi?", "Yo.")


def test_an_end_may_be_text() -> None:
    text = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n### End\n{% endfor %}"
    tokenizer = templated("GPT-2", text + "{% if add_generation_prompt %}### assistant:{% endif %}")
    prompt = PromptFormat(tokenizer)
    row = prompt.row("Hi?", "Yo.")
    assert tokenizer.decode(row.prompt) == "### user: Hi?\n### End\n### assistant:"
    assert tokenizer.decode(row.answer) == " Yo.\n### End"
    assert prompt.end_text == "### End"


def test_an_answer_needs_an_end_of_the_template_or_of_the_tokenizer() -> None:
    tokenizer = FAMILIES["Falcon"].make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no eos_token, so an answer would have no end"):
        PromptFormat(tokenizer).row("Hi?", "Yo.")
    tokenizer = FAMILIES["Phi 3"].make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{% else %}{{ eos_token }}", "")
    tokenizer.eos_token = None
    assert tokenizer.decode(PromptFormat(tokenizer).row("Hi?", "Yo.").answer) == "Yo.<|end|>"


def test_a_template_without_answers_is_refused() -> None:
    tokenizer = templated(
        "Qwen 2", "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="does not write the messages of the assistant"):
        PromptFormat(tokenizer).row("Hi?", "Yo.")


def test_a_template_without_a_prompt_of_its_own_is_asked_by_what_it_writes_before_an_answer() -> None:
    tokenizer = templated(
        "Qwen 2", "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    prompt = PromptFormat(tokenizer)
    assert prompt.text("Hi?") == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.row("Hi?", "Yo.").prompt == prompt.prompt("Hi?")


def test_a_token_of_prompt_and_answer_is_of_the_answer_if_it_holds_a_letter_of_it() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: number for number, token in enumerate(["a", "b", ":", " ", "\n", ":b", "\n\n", ": ", "</s>"])}
    merges = [(":", "b"), ("\n", "\n"), (":", " ")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=merges)), eos_token="</s>"
    )

    def parts(prompt_format: str, answer: str) -> tuple[list[str], list[str]]:
        row = PromptFormat(tokenizer, prompt_format=prompt_format).row("a", answer)
        return tokenizer.convert_ids_to_tokens(row.prompt), tokenizer.convert_ids_to_tokens(row.answer)

    assert parts("{question}:", "ba") == (["a"], [":b", "a", "</s>"])
    assert parts("{question}:\n", "\nba") == (["a", ":"], ["\n\n", "b", "a", "</s>"])
    assert parts("{question}: ", "ba") == (["a", ": "], ["b", "a", "</s>"])  # only white space of it


def test_reasoning_is_a_part_of_the_answer_and_an_empty_think_block_of_the_prompt() -> None:
    tokenizer = FAMILIES["Qwen 3"].make_tokenizer()
    prompt = PromptFormat(tokenizer)
    asked = [{"role": "user", "content": "Hi?"}]
    for answer in (
        {"role": "assistant", "content": "Yo.", "reasoning_content": "A greeting."},
        {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nYo."},
    ):
        (row,) = prompt.rows([prompt.conversation(asked, answer)])
        assert tokenizer.decode(row.answer) == "A greeting.\n</think>\n\nYo.<|im_end|>"
        assert tokenizer.decode(row.prompt).endswith("<|im_start|>assistant\n<think>\n")
    with pytest.warns(UserWarning, match=r"before an answer without reasoning.*'enable_thinking': False"):
        LanguageDataModule([{"question": "Hi?", "answer": "Yo."}], prompt=prompt).setup("fit")
    off = replace(prompt, chat_template_kwargs={"enable_thinking": False})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LanguageDataModule([{"question": "Hi?", "answer": "Yo."}], prompt=off).setup("fit")
    assert off.row("Hi?", "Yo.").prompt == off.prompt("Hi?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chat_template_kwargs": {"tokenize": True}}, r"arguments of the template itself, but got \['tokenize'\]"),
        ({"date": "10 April"}, "date must be a day such as '2025-04-10', but got '10 April'"),
        ({"turns": "first"}, "turns"),
        ({"tokenizer": type("MistralCommonBackend", (), {})()}, r"mistral-common.*mistral_format=False"),
        ({"prompt_format": "{question} {name}"}, "no other field than"),
        ({"prompt_format": "{question}", "chat_template": "x"}, "prompt_format replaces the chat template"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptFormat(**arguments)


STRINGS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}</{{ m.role }}>"
    "{% endfor %}"
)


def test_messages_in_parts_are_written_as_texts_and_a_question_is_never_left_out(tiny_lm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)

    def text(template: str, content: Any) -> str:
        return PromptFormat(tokenizer, chat_template=template).text([{"role": "user", "content": content}])

    parts = [{"type": "text", "text": "Who wrote "}, {"type": "text", "text": "it?"}]
    assert text(STRINGS, parts) == text(STRINGS, "Who wrote it?") == "<user>Who wrote it?</user><assistant>"
    assert text(PARTS, parts) == text(PARTS, "Who wrote it?") == "<user>Who wrote it?</user><assistant>"
    with pytest.raises(ValueError, match=r"leaves the user message out, 'Who wrote it.'"):
        text("{% for m in messages %}<{{ m.role }}>{{ m.text }}{% endfor %}", "Who wrote it?")
