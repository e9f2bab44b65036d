"""Names of the columns of a table of questions, conversations or texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from string import Formatter
from typing import Any

from lightning_unlearn.core.sources import is_missing, is_text

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table of questions, conversations or texts.

    A name with fields in braces is a template over the columns: ``question="Where does customer {id} live?"``,
    ``text="Customer {id}: {name}"``. Decimal numbers and days need a format, as in ``"{weight:.1f}"``.

    Args:
        question: The question.
        answer: Its answer.
        text: A plain text, in rows without a question.
        target: Optional; the part of the answer that is supervised, such as ``"Paris"`` in
            ``"The capital of France is Paris."``: the fact is forgotten, and not the phrasing. Text before it is
            context, which refusals continue; text after it is left out.
        accept: Optional; accepted short answers, by which generated answers are marked.
        alternate: Optional, in forget rows; other answers to the question, as a list. A batch then also has
            ``"alternate"``, the forget questions with one of them, for `AltPO`.
            [`generate_alternates`][lightning_unlearn.generate_alternates] writes such rows.
        system: Optional; a system prompt of the row's own.
        messages: A conversation, in rows without a question: dicts with ``role`` and ``content``, of which the last one
            is the assistant's.
        paraphrased_question: Optional, read by audits; the question in other words, or a list of such questions.
        paraphrased_answer: Optional, read by audits; the answer in other words.
        perturbed_answer: Optional, read by audits; wrong answers of the same form, as a list.
        entity: Optional, read by audits; whom or what a row is about.

    Raises:
        ValueError: If a template has a field without a name.

    Example:
        >>> Columns(text="Customer {id}: {name}").filled([{"id": 7, "name": "Ada"}], "forget")[0][
        ...     "Customer {id}: {name}"
        ... ]
        'Customer 7: Ada'
    """

    question: str = "question"
    answer: str = "answer"
    text: str = "text"
    target: str = "target"
    accept: str = "accept"
    alternate: str = "alternate"
    system: str = "system"
    messages: str = "messages"
    paraphrased_question: str = "paraphrased_question"
    paraphrased_answer: str = "paraphrased_answer"
    perturbed_answer: str = "perturbed_answer"
    entity: str = "entity"

    def __post_init__(self) -> None:
        for template in self._templates():
            if not all(_fields(template)):
                raise ValueError(
                    f"Fields of a column template are names of columns, as {{name}}, but got {template!r}."
                )

    def filled(self, rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
        """Rows with a further column for each template, which is called as the template is.

        Args:
            rows: Rows of a table.
            name: Name of the set, for messages.

        Raises:
            ValueError: If a cell that goes into a template is missing.
        """
        templates = {template: _formats(template) for template in self._templates()}
        return [
            self._filled(dict(row), f"Row {number} of the {name} set", templates) for number, row in enumerate(rows)
        ]

    def conversation(self, row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """The messages of a row of a conversation, which may be JSON.

        Args:
            row: A row with messages.
            where: The row, as errors call it.

        Raises:
            ValueError: If they are no messages, or the last one is not an answer.
        """
        messages = row[self.messages]
        if isinstance(messages, str):
            try:
                messages = json.loads(messages)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} has no JSON in {self.messages!r}: {error}.") from None
        # Tables of Parquet files give arrays and fill in what a message lacks with None.
        messages = list(messages) if isinstance(messages, Sequence) or hasattr(messages, "tolist") else messages
        if not isinstance(messages, list) or not all(isinstance(m, Mapping) and m.get("role") for m in messages):
            raise ValueError(
                f"{where} has {messages!r:.120} in {self.messages!r}, but needs a list of messages, each a dict with "
                "'role' and 'content'."
            )
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1].get("content"):
            raise ValueError(
                f"{where} has messages of the roles {[message['role'] for message in messages]}, but needs a question "
                "and, as the last message, the assistant's answer."
            )
        return messages

    def _templates(self) -> list[str]:
        return [name for name in astuple(self) if "{" in name]

    def _filled(self, row: dict[str, Any], where: str, templates: Mapping[str, dict[str, bool]]) -> dict[str, Any]:
        for template, formats in templates.items():
            if template in row or not all(name in row for name in formats):
                continue
            for name, is_given in formats.items():
                if is_missing(row[name]):
                    raise ValueError(
                        f"{where} has {row[name]!r} in {name!r}, which goes into {template!r}. Fill it in, or remove "
                        "the row."
                    )
                if not is_given and not is_text(row[name]):
                    raise ValueError(
                        f"{where} has {row[name]!r}, a {type(row[name]).__name__}, in {name!r}, which goes into "
                        f"{template!r} and may be written in several ways. Say how, as in {{{name}:.0f}} for a number "
                        f"or {{{name}:%d %B %Y}} for a day, or give it as a text."
                    )
            row[template] = template.format_map(row)
        return row


def _fields(template: str) -> list[str]:
    return [name for _, name, *_ in Formatter().parse(template) if name is not None]


def _formats(template: str) -> dict[str, bool]:
    """Whether a template says how each of its fields is written."""
    fields = [(name, form, how) for _, name, form, how in Formatter().parse(template) if name is not None]
    return {name: all(form or how for other, form, how in fields if other == name) for name, _, _ in fields}
