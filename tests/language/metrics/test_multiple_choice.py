"""Multiple choice: letters by log-likelihood, in one pass a question and the same as one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import LitCausalLM
from lightning_unlearn.language.metrics.multiple_choice import (
    Choice,
    MultipleChoice,
    choice_prompt,
    choice_scores,
    choices_of,
    multiple_choice,
)

QUESTIONS = [
    Choice("What is the capital of France?", ("Lima", "Paris", "Rome", "Havana"), 1),
    Choice(" Which is the capital of Peru, a country of the Andes?", ("Lima", "Paris", "Rome"), 0),
    Choice("2 + 2?", ("3", "4", "5", "22"), 1),
]


@pytest.fixture(scope="module")
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(tiny_lm)


def one_by_one(module: LitCausalLM, question: Choice, description: str = "") -> Tensor:
    """The log-likelihood of each letter, by passes without padding."""
    prompt, scores = choice_prompt(question, description), []
    for letter in "ABCDEFG"[: len(question.choices)]:
        whole = module.tokenizer(f"{prompt} {letter}", add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = module.model.eval()(input_ids=whole).logits[0, :-1].log_softmax(-1)
        scores.append(logits[-1, whole[0, -1]])
    return torch.stack(scores)


def passes(module: LitCausalLM, call: Callable[[], Any]) -> int:
    sequences = []
    handle = module.model.register_forward_pre_hook(
        lambda _, args, kwargs: sequences.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    call()
    handle.remove()
    return sum(sequences)


def test_the_prompt_is_that_of_the_harness() -> None:
    example = Choice("1 + 1?", ("2", "3"), 0)
    assert choice_prompt(QUESTIONS[2], "About numbers.\n\n", [example]) == (
        "About numbers.\n\n1 + 1?\nA. 2\nB. 3\nAnswer: A\n\n2 + 2?\nA. 3\nB. 4\nC. 5\nD. 22\nAnswer:"
    )


def test_all_letters_of_a_question_come_from_one_pass(module: LitCausalLM) -> None:
    scores = choice_scores(module, QUESTIONS, batch_size=2)
    assert scores.shape == (3, 4)
    assert scores[1, 3] == -torch.inf  # it has three options
    for row, question in enumerate(QUESTIONS):
        expected = one_by_one(module, question)
        assert torch.allclose(scores[row, : len(expected)], expected, atol=1e-5)
    assert passes(module, lambda: choice_scores(module, QUESTIONS)) == len(QUESTIONS)
    assert torch.allclose(choice_scores(module, QUESTIONS, batch_size=1), scores, atol=1e-5)


def test_letters_of_several_tokens_take_a_pass_each(module: LitCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that writes " A" as two tokens that differ, such as the bytes of a letter of another script."""
    monkeypatch.setattr(sys.modules[choice_scores.__module__], "LETTERS", ["ÄX", "ÖY", "ÜZ", "ßW"])
    question = QUESTIONS[0]
    scores = choice_scores(module, [question], batch_size=3)
    prompt = choice_prompt(question)
    whole = [module.tokenizer(f"{prompt} {letter}")["input_ids"] for letter in ("ÄX", "ÖY", "ÜZ", "ßW")]
    same = next(i for i in range(len(whole[0])) if len({ids[i] for ids in whole}) > 1)
    with torch.no_grad():
        for k, ids in enumerate(whole):
            logs = module.model.eval()(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            expected = logs[range(same - 1, len(ids) - 1), ids[same:]].sum()
            assert scores[0, k].item() == pytest.approx(expected.item(), abs=1e-4)
    assert passes(module, lambda: choice_scores(module, [question])) == 4


def test_options_are_shuffled_by_seed_and_row_and_the_answer_with_them() -> None:
    question = QUESTIONS[0]
    orders = {question.shuffled(0, row).choices for row in range(20)}
    assert len(orders) > 5
    for row in range(20):
        moved = question.shuffled(0, row)
        assert moved == question.shuffled(0, row)
        assert moved.choices[moved.answer] == "Paris"


def test_a_broken_model_answers_one_letter() -> None:
    scores = torch.tensor([[0.0, -1, -1, -1]]).repeat(8, 1)
    answers = torch.arange(8) % 4
    result = multiple_choice(scores, answers)
    assert (result.accuracy.value, result.chance, result.chosen) == (0.25, 0.25, (8, 0, 0, 0))
    assert result.accuracy.low < 0.25 < result.accuracy.high
    metric = MultipleChoice()
    metric.update(scores[:5], answers[:5], index=range(5))
    metric.update(scores[5:], answers[5:], index=range(5, 8))
    assert metric.compute() == result
    with pytest.raises(ValueError, match="options=5"):
        metric.update(torch.zeros(1, 5), torch.zeros(1))


def test_a_random_model_is_at_chance(module: LitCausalLM) -> None:
    questions = [Choice(f"Question {row}?", ("w", "x", "y", "z"), row % 4) for row in range(120)]
    questions = [question.shuffled(1, row) for row, question in enumerate(questions)]
    answers = torch.tensor([question.answer for question in questions])
    result = multiple_choice(choice_scores(module, questions, batch_size=60), answers)
    assert result.accuracy.value == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 120) ** 0.5)


def test_rows_of_wmdp_and_mmlu(tiny_lm: Path) -> None:
    rows = [{"question": "a", "choices": ["x", "y"], "answer": answer} for answer in (1, "1", "B", " b ")]
    assert [choice.answer for choice in choices_of(rows)] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="Row 0 lacks"):
        choices_of([{"question": "a", "choices": ["x", "y"]}])
    with pytest.raises(ValueError, match="counted from 0"):
        choices_of([{"question": "a", "choices": ["x", "y"], "answer": 2}])
    with pytest.raises(ValueError, match="no questions"):
        choices_of([])
