"""Probes: questions that test whether a language model knows a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_unlearn.core.sources import is_missing
from lightning_unlearn.language.chat import Messages, content_text
from lightning_unlearn.language.data.columns import Columns

__all__ = ["Probe", "probes_of"]


@dataclass(frozen=True)
class Probe:
    """A question with the answer that a model gives if it knows the row.

    Args:
        row: Number of the row in its set, which identifies it: questions can repeat.
        question: The question, or the messages before the answer; of a plain text, its beginning.
        answer: The whole answer; of a plain text, its continuation.
        accept: Accepted short answers. Empty: the answer itself.
        target: The part of the answer that holds the fact; ``""`` is all of it.
        paraphrased_questions: The question in other words.
        paraphrased_answer: The answer in other words; ``""`` where there is none.
        perturbed_answers: Wrong answers of the same form.
        entity: Whom or what the row is about; rows of one entity are not independent.
        is_text: Whether the row is a plain text, which is continued as it is instead of asked for.

    Example:
        >>> Probe(0, "What is the capital of France?", "It is Paris.", accept=("Paris",)).accepted
        ('Paris',)
    """

    row: int
    question: str | Messages
    answer: str
    accept: tuple[str, ...] = ()
    target: str = ""
    paraphrased_questions: tuple[str, ...] = ()
    paraphrased_answer: str = ""
    perturbed_answers: tuple[str, ...] = ()
    entity: str = ""
    is_text: bool = False

    @property
    def accepted(self) -> tuple[str, ...]:
        """Accepted answers: the short ones, or the answer itself."""
        return self.accept or (self.answer,)

    def asked(self, question: str | Messages) -> Probe:
        """The same probe with another question."""
        return replace(self, question=question)

    def rephrased(self, text: str) -> Probe:
        """The probe with its question in other words; the messages before the question stay as they are."""
        if isinstance(self.question, str):
            return self.asked(text)
        *before, last = self.question
        return self.asked([*before, {**last, "content": text}])


def probes_of(rows: Sequence[Mapping[str, Any]], columns: Columns | None = None, name: str = "forget") -> list[Probe]:
    """Probes of the rows of a table.

    Args:
        rows: Rows with a question and an answer, a conversation, or a text; see `Columns`.
        columns: Names of the columns.
        name: Name of the set, for errors.

    Raises:
        ValueError: If there is no row, or a row has neither a question with an answer, nor messages.

    Example:
        >>> probes_of([{"question": "Who?", "answer": "Ada.", "perturbed_answer": ["Bob."]}])[0].perturbed_answers
        ('Bob.',)
    """
    columns = columns or Columns()
    if not rows:
        raise ValueError(f"The {name} set is empty, so there is nothing to ask. Give at least one row.")
    return [_probe(number, row, columns, name) for number, row in enumerate(columns.filled(rows, name))]


def _probe(number: int, row: Mapping[str, Any], columns: Columns, name: str) -> Probe:
    where, system = f"Row {number} of the {name} set", _cell(row, columns.system)
    if not _cell(row, columns.question) and not is_missing(row.get(columns.messages)):
        *before, last = columns.conversation(row, where)
        return Probe(number, _under(system, before), content_text(last).strip(), **_extras(row, columns))
    question, answer = _cell(row, columns.question), _cell(row, columns.answer)
    if not question or not answer:
        raise ValueError(
            f"{where} needs text in {columns.question!r} and {columns.answer!r}, but has the columns "
            f"{sorted(row)}. Rename them, or name yours: Columns(question=..., answer=...)."
        )
    asked = _under(system, [{"role": "user", "content": question}]) if system else question
    return Probe(number, asked, answer, **_extras(row, columns))


def _under(system: str, messages: Messages) -> Messages:
    """Messages under the system prompt of a row, where they have none of their own."""
    own = any(message.get("role") == "system" for message in messages)
    return list(messages) if own or not system else [{"role": "system", "content": system}, *messages]


def _extras(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    return {
        "accept": _cells(row, columns.accept),
        "target": _cell(row, columns.target),
        "paraphrased_questions": _cells(row, columns.paraphrased_question),
        "paraphrased_answer": _cell(row, columns.paraphrased_answer),
        "perturbed_answers": _cells(row, columns.perturbed_answer),
        "entity": _cell(row, columns.entity),
    }


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if is_missing(value) else str(value).strip()


def _cells(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value: Any = row.get(name)
    if is_missing(value):
        return ()
    values = [value] if isinstance(value, str) else list(value)
    return tuple(text for text in (str(part).strip() for part in values) if text)
