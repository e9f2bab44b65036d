"""Base class of prompt attacks, and knowledge over several attempts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.chat import Messages, content_text
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["Attempt", "Attempts", "PromptAttack", "after_turns", "refuse_texts", "with_system"]

_MARK = "\U000f4e02"  # a private character


class Attempt(NamedTuple):
    """One way to ask for all rows.

    Args:
        name: What it is called in reports.
        probes: The changed probe of each row; ``None`` for a row that can't be asked in this way.
    """

    name: str
    probes: Sequence[Probe | None]


@dataclass(frozen=True)
class Attempts(Knowledge):
    """Knowledge under several attempts: ``strength`` and ``matched`` are those of the best attempt of each row.

    Args:
        names: Names of the attempts.
        strengths: Strength of each attempt, shape ``(attempts, N)``; NaN where a row was not asked.
        matches: The same of the share of right answers.
    """

    names: tuple[str, ...] = ()
    strengths: Tensor | None = None
    matches: Tensor | None = None

    def mean(self) -> Knowledge:
        """Mean over the attempts of each row, which distinguishes broad recovery from one lucky phrasing."""
        strength, matched = (v.nanmean(0) if v is not None else None for v in (self.strengths, self.matches))
        return Knowledge(strength, matched, self.answers)


class PromptAttack(LanguageAttack):
    """An attack that leaves the model as it is and asks for the rows in other ways.

    The score of a row is that of its best attempt, which an attacker would choose; the same holds for every model.
    [`Attempts`][lightning_unlearn.language.attacks.attempts.Attempts] has the score of each attempt too.
    """

    @abstractmethod
    def attempts(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[Attempt]:
        """All attempts at the rows.

        Args:
            module: The model, whose prompt format they are for.
            probes: Questions to the forget rows.

        Raises:
            ValueError: If the rows can't be asked in this way.
        """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of attempts a row, at most."""

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Attempts:
        """What the model knows of each row under the best of its attempts.

        Raises:
            ValueError: If the rows can't be asked in this way.
        """
        refuse_texts(self.name, probes)
        attempts = self.attempts(module, probes)
        asked = [
            (i, j) for i, attempt in enumerate(attempts) for j, one in enumerate(attempt.probes) if one is not None
        ]
        found = scorer(module, [attempts[i].probes[j] for i, j in asked])  # type: ignore[misc]
        return best_attempts([attempt.name for attempt in attempts], len(probes), asked, found)

    def cost(self, rows: int) -> Cost:
        """One pass and one generation an attempt."""
        return Cost(passes=self.size, generations=self.size)


def best_attempts(names: Sequence[str], rows: int, asked: Sequence[tuple[int, int]], found: Knowledge) -> Attempts:
    """Knowledge over several attempts, from one measurement of all of them.

    Args:
        names: Names of the attempts.
        rows: Number of rows.
        asked: Number of the attempt and the row of each score.
        found: The scores.
    """

    def table(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        scores = torch.full((len(names), rows), torch.nan)
        for (i, j), value in zip(asked, values.tolist(), strict=True):
            scores[i, j] = value
        return scores

    def best(values: Tensor | None) -> Tensor | None:
        return values.nan_to_num(nan=-1.0).amax(0) if values is not None else None

    strengths, matches = table(found.strength), table(found.matched)
    answers: list[list[str]] = [[] for _ in range(rows)] if found.answers else []
    for (_, j), texts in zip(asked, found.answers, strict=False):
        answers[j] += texts
    return Attempts(best(strengths), best(matches), answers, tuple(names), strengths, matches)


def refuse_texts(name: str, probes: Sequence[Probe]) -> None:
    """Refuse rows that are plain texts.

    Raises:
        ValueError: If there are no probes, or one of them is of a plain text.
    """
    if not probes:
        raise ValueError(f"The attack {name!r} got no rows to ask for. Give at least one probe.")
    for probe in probes:
        if probe.is_text:
            raise ValueError(
                f"The attack {name!r} asks questions, but row {probe.row} is a plain text. Leave the attack out, or "
                "give rows with a question and an answer."
            )


def after_turns(
    prompt_format: PromptFormat, turns: Sequence[tuple[str | Messages, str]], question: str | Messages
) -> str | Messages:
    r"""A question after other questions and their answers, as messages, or as one text in a plain format.

    Args:
        prompt_format: The model's.
        turns: Questions with their answers.
        question: The question.

    Example:
        >>> plain = PromptFormat(prompt_format="Q: {question}\nA: ")
        >>> after_turns(plain, [("2 + 2?", "4")], "3 + 3?")
        '2 + 2?\nA: 4\n\nQ: 3 + 3?'
    """
    if prompt_format.is_chat:
        earlier = [part for turn, answer in turns for part in [*_messages(turn), _said("assistant", answer)]]
        asked = _messages(question)
        system = [message for message in asked if message.get("role") == "system"]
        return [*system, *earlier, *(message for message in asked if message not in system)]
    before, _, after = prompt_format.text(_MARK).partition(_MARK)
    own = prompt_format.system_prompt or ""
    before = before.removeprefix(own).lstrip() if own else before
    written = prompt_format.prompt_format or " "  # a format of the user's may have no space before the answer
    after += written[len(written.rstrip()) :]
    shots = "".join(f"{_text(turn)}{after}{answer}\n\n{before}" for turn, answer in turns)
    return shots + _text(question)


def with_system(prompt_format: PromptFormat, system: str, question: str | Messages) -> str | Messages:
    """A question under a system prompt; before the question, where the model's format has no place for one."""
    messages = [message for message in _messages(question) if message.get("role") != "system"]
    if prompt_format.is_chat:
        try:
            prompt_format.template.prompts([[_said("system", system), *messages]])
        except ValueError:
            first, *rest = messages
            return [{**first, "content": f"{system}\n\n{content_text(first)}"}, *rest]
        return [_said("system", system), *messages]
    return f"{system}\n\n{_text(question)}"


def reworded(question: str | Messages, template: str) -> str | Messages:
    """A question within a template with ``{question}``; of messages, the last one's text."""
    if isinstance(question, str):
        return template.replace("{question}", question)
    *before, last = question
    return [*before, {**last, "content": template.replace("{question}", content_text(last))}]


def warn_of_rest(name: str, rest: Sequence[Probe], lacks: str) -> None:
    """Warn of rows that an attack leaves unchanged."""
    if rest:
        rows = ", ".join(str(probe.row) for probe in rest[:5])
        rank_zero_warn(
            f"The attack {name!r} asks {len(rest)} rows as they are, since they have no {lacks} (rows {rows}"
            f"{', ...' if len(rest) > 5 else ''})."
        )


def _messages(question: str | Messages) -> Messages:
    return [_said("user", question)] if isinstance(question, str) else list(question)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(question: str | Messages) -> str:
    return question if isinstance(question, str) else content_text(question[-1])
