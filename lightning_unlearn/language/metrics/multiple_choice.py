"""Multiple choice as in WMDP and MMLU: letters of the options, scored by log-likelihood in one pass a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.intervals import Interval, clopper_pearson
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.row_metric import IndexedMetric
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.tokens import beginning

__all__ = [
    "Choice",
    "MultipleChoice",
    "MultipleChoiceResult",
    "choice_prompt",
    "choice_scores",
    "choices_of",
    "multiple_choice",
]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IGNORED = -100


@dataclass(frozen=True)
class Choice:
    """A question with options.

    Args:
        question: The question.
        choices: The options, 2 to 26.
        answer: Number of the right option, from 0.

    Raises:
        ValueError: If there are too few or too many options, or the answer is none of them.
    """

    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS) or not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"A question needs 2 to {len(LETTERS)} options and the number of the right one, counted from 0, but "
                f"{self.question[:60]!r} has {len(self.choices)} options and the answer {self.answer}."
            )

    def shuffled(self, seed: int, row: int) -> Choice:
        """The same question with its options in another order, which depends on the seed and the row alone."""
        order = torch.randperm(len(self.choices), generator=keyed_generator(seed, row)).tolist()
        return replace(self, choices=tuple(self.choices[i] for i in order), answer=order.index(self.answer))


class MultipleChoiceResult(NamedTuple):
    """Accuracy on questions with options.

    Args:
        accuracy: Share of right answers with its Clopper-Pearson interval.
        chance: Accuracy of guessing, the mean of one over the number of options.
        chosen: How often each letter was chosen. A broken model answers one letter.
        n: Number of questions.
    """

    accuracy: Interval
    chance: float
    chosen: tuple[int, ...]
    n: int


def choices_of(rows: Sequence[Mapping[str, Any]]) -> list[Choice]:
    """Questions of the rows of WMDP or MMLU: ``question``, ``choices`` and ``answer``, a number or a letter.

    Args:
        rows: Rows of a table.

    Raises:
        ValueError: If there are no rows, or one lacks a column.

    Example:
        >>> choices_of([{"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}])[0].answer
        1
    """
    if not rows:
        raise ValueError("There are no questions. Give at least one row.")
    questions = []
    for number, row in enumerate(rows):
        if missing := sorted({"question", "choices", "answer"} - set(row)):
            raise ValueError(f"Row {number} lacks the columns {missing}; it has {sorted(row)}.")
        answer = row["answer"]
        if isinstance(answer, str) and not answer.strip().isdigit():
            answer = LETTERS.find(answer.strip().upper())
        questions.append(Choice(str(row["question"]), tuple(map(str, row["choices"])), int(answer)))
    return questions


def choice_prompt(question: Choice, description: str = "", examples: Sequence[Choice] = ()) -> str:
    r"""The prompt of lm-evaluation-harness: description, solved examples, question, lettered options, ``Answer:``.

    Args:
        question: The question.
        description: Text before everything, such as
            ``"The following are multiple choice questions (with answers) about biology.\n\n"``.
        examples: Solved questions to show before it.

    Example:
        >>> print(choice_prompt(Choice("2 + 2?", ("3", "4"), 1)))
        2 + 2?
        A. 3
        B. 4
        Answer:
    """
    shown = "".join(f"{_asked(example)} {LETTERS[example.answer]}\n\n" for example in examples)
    return description + shown + _asked(question)


def choice_scores(
    module: LitCausalLM,
    questions: Sequence[Choice],
    description: str = "",
    examples: Sequence[Choice] = (),
    batch_size: int = 16,
) -> Tensor:
    r"""Log-likelihood of each option's letter after the prompt, $\log p(\text{" A"} \mid \text{prompt})$.

    If the letters are single tokens, as in almost every tokenizer, all are read at the last position of one pass.
    Otherwise each option takes a pass.

    Args:
        module: The model with its tokenizer.
        questions: The questions.
        description: See `choice_prompt`.
        examples: See there.
        batch_size: Sequences in a pass.

    Returns:
        Shape ``(N, K)`` for at most ``K`` options, fp32 on the CPU; ``-inf`` where a question has fewer.

    Raises:
        ValueError: If there are no questions or the model has no tokenizer.
    """
    at_least("batch_size", batch_size, 1)
    if not questions or module.tokenizer is None:
        raise ValueError("Questions and a model with a tokenizer are needed: LitCausalLM(..., tokenizer=...).")
    special = beginning(module.tokenizer)
    prompts = [choice_prompt(question, description, examples) for question in questions]
    options = [
        _option_ids(module.tokenizer, special, prompt, len(question.choices))
        for prompt, question in zip(prompts, questions, strict=True)
    ]
    scores = torch.full((len(questions), max(map(len, options))), -torch.inf)
    single = [row for row, ids in enumerate(options) if len({tuple(option[:-1]) for option in ids}) == 1]
    others = [(row, k) for row in range(len(options)) if row not in set(single) for k in range(len(options[row]))]
    with evaluating(module):
        for rows in _batches(single, batch_size, options):
            logits = causal_lm_nll.predictions(module, _batch(module, [(options[row][0], 1) for row in rows])).logits
            for row, values in zip(rows, logits.float().log_softmax(-1).cpu(), strict=True):
                scores[row, : len(options[row])] = values[[option[-1] for option in options[row]]]
        for start in range(0, len(others), batch_size):
            part = others[start : start + batch_size]
            sequences = [(options[row][k], len(options[row][k]) - _shared(options[row])) for row, k in part]
            for (row, k), nll in zip(part, causal_lm_nll(module, _batch(module, sequences)).tolist(), strict=True):
                scores[row, k] = -nll
    return scores


def multiple_choice(scores: Tensor, answers: Tensor) -> MultipleChoiceResult:
    r"""Accuracy of the likeliest letter, $\frac1N|\{i : \arg\max_k s_{ik} = y_i\}|$.

    Args:
        scores: As `choice_scores` gives them, shape ``(N, K)``.
        answers: Numbers of the right options, shape ``(N,)``.

    Returns:
        The accuracy, chance, and how often each letter was chosen.

    Raises:
        ValueError: If there are no questions, or the shapes do not fit.

    Example:
        >>> result = multiple_choice(torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), torch.tensor([0, 0]))
        >>> result.accuracy.value, result.chance, result.chosen
        (0.5, 0.5, (1, 1))
    """
    if scores.dim() != 2 or answers.shape != scores.shape[:1] or len(scores) == 0:
        raise ValueError(
            f"Scores (N, K) and answers (N,) of at least one question are needed, but got {tuple(scores.shape)} and "
            f"{tuple(answers.shape)}."
        )
    chosen = scores.argmax(1).cpu()
    options = scores.isfinite().sum(1)
    return _result(chosen, chosen == answers.cpu(), options.cpu(), scores.shape[1])


class MultipleChoice(IndexedMetric):
    """Accuracy on questions with options, over all rows; see `multiple_choice`.

    In [0, 1]; good is the original's accuracy on general questions, and chance, or the retrained model's, on those to
    forget. Also measure with shuffled options, ``question.shuffled(seed, row)``: a model may know the letter and not
    the option.

    Args:
        options: Largest number of options.

    Raises:
        ValueError: If no row was seen, or the shapes do not fit.

    Example:
        >>> metric = MultipleChoice()
        >>> metric.update(torch.tensor([[0.0, -1.0, -2.0, -3.0]]), torch.tensor([0]), index=[0])
        >>> metric.compute().accuracy.value
        1.0
    """

    higher_is_better: bool | None = None

    def __init__(self, options: int = 4, **kwargs: Any) -> None:
        super().__init__(("chosen", "hit", "options"), **kwargs)
        self.options = at_least("options", options, 2)

    def update(self, scores: Tensor, answers: Tensor, index: Tensor | Sequence[int] | None = None) -> None:
        """Count the scores ``(B, K)`` of questions, with the right options ``(B,)`` and the numbers of the rows."""
        if scores.dim() != 2 or answers.shape != scores.shape[:1] or scores.shape[1] > self.options:
            raise ValueError(
                f"Scores (B, K) with K at most {self.options} and answers (B,) are needed, but got "
                f"{tuple(scores.shape)} and {tuple(answers.shape)}. Give the number of options: "
                f"MultipleChoice(options={scores.shape[-1]})."
            )
        chosen = scores.argmax(1)
        self.record(index, chosen=chosen, hit=chosen == answers.to(chosen), options=scores.isfinite().sum(1))

    def compute(self) -> MultipleChoiceResult:
        """Accuracy and chosen letters over all rows so far."""
        self.kept("hit")
        rows = self.unique_rows()
        return _result(rows["chosen"].long(), rows["hit"].bool(), rows["options"], self.options)


def _result(chosen: Tensor, hit: Tensor, options: Tensor, letters: int) -> MultipleChoiceResult:
    counts = torch.bincount(chosen, minlength=letters).tolist()
    accuracy = clopper_pearson(int(hit.sum()), len(hit))
    return MultipleChoiceResult(accuracy, float((1 / options.double()).mean()), tuple(counts), len(hit))


def _asked(question: Choice) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.question.strip(), *lines, "Answer:"])


def _option_ids(tokenizer: Any, special: Sequence[int], prompt: str, options: int) -> list[list[int]]:
    """Tokens of the prompt with each letter, tokenized as one text."""
    texts = [f"{prompt} {letter}" for letter in LETTERS[:options]]
    return [[*special, *ids] for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def _shared(options: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all options begin with; each has at least one of its own."""
    shortest = min(map(len, options))
    same = (len({option[i] for option in options}) == 1 for i in range(shortest - 1))
    return next((i for i, equal in enumerate(same) if not equal), shortest - 1)


def _batches(rows: Sequence[int], size: int, options: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[int]]:
    """Rows of like length together."""
    ordered = sorted(rows, key=lambda row: len(options[row][0]))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _batch(module: LitCausalLM, sequences: Sequence[tuple[Sequence[int], int]]) -> dict[str, Tensor]:
    """A batch of token ids, each with the number of labels at its end."""
    width = max(len(ids) for ids, _ in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for row, (tokens, labelled) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, len(tokens) - labelled : len(tokens)] = torch.tensor(tokens[len(tokens) - labelled :])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: values.to(module.device) for name, values in batch.items()}
