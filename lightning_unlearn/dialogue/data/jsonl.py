"""Dialogues in JSON lines, the format for data of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_unlearn.dialogue.data.module import DialogueDataModule, Label
from lightning_unlearn.dialogue.data.reading import RatedDialogues, existing, numbers, read_text
from lightning_unlearn.dialogue.data.records import TURN_KEYS, response_text, turns_of
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask, task_of

__all__ = ["JSONLDialogues", "read_jsonl"]

_WHAT = (
    'JSON lines, one dialogue a line, such as {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", '
    '"content": "Hello"}], "ratings": [3, 4]}, where ratings may be missing'
)


class JSONLDialogues(DialogueDataModule):
    """Dialogues of a file with one JSON object a line, or of a JSON file with a list of such objects or one of them.

    ``messages`` (or ``turns``, ``conversations``, ``conversation``) is a list of messages: those of OpenAI's chat
    format, ``{"role": ..., "content": ...}``, of ShareGPT, ``{"from": ..., "value": ...}``, or
    ``{"role": ..., "text": ...}``. Content may be a list of text parts. A system prompt at the beginning, calls of
    tools and their results are left out and counted in ``dropped_messages``, since the judge rates what user and
    assistant say to each other.

    There may be an ``id``, ``ratings`` (or one ``rating``), and a ``response`` where that is rated and not the
    dialogue. Whatever else is a string, a number or a boolean is kept in ``meta``; lines with the same ``dialogue``
    stay on one side of the split.

    Args:
        path: The file.
        task: The scale that ratings must be on.
        label: See [`DialogueDataModule`][lightning_unlearn.DialogueDataModule].
        batch_size: Dialogues in a batch.
        seed: Seed of the split and of shuffling.
        num_workers: Processes that load data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is of another format, two have the same ``id``, or a rating is not on the scale.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        task: RatingTask | str = SATISFACTION,
        label: Label = "mean",
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        read = read_jsonl(path, task)
        super().__init__(read, label=label, batch_size=batch_size, seed=seed, num_workers=num_workers)


def read_jsonl(path: str | os.PathLike[str], task: RatingTask | str = SATISFACTION) -> RatedDialogues:
    """The dialogues of a file of JSON lines or a list in JSON; those without ratings too.

    Args:
        path: The file.
        task: The scale that ratings must be on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is of another format, two have the same ``id``, or a rating is not on the scale.
    """
    task, path = task_of(task), existing(path, _WHAT)
    dialogues, ratings, messages = [], 0, 0
    for where, number, item in _records(path):
        dialogue, lost, left_out = _dialogue(f"{path.stem}-{number}", where, item, task)
        dialogues.append(dialogue)
        ratings += lost
        messages += left_out
    if not dialogues:
        raise ValueError(f"{path} is empty. It must be {_WHAT}.")
    return RatedDialogues(dialogues, ratings, dropped_messages=messages)


def _records(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Place, number and content of each record of a file."""
    text = read_text(path, _WHAT).strip()
    if text.startswith("[") or "\n" in text:
        listed = _listed(path, text)
        if listed is not None:
            yield from ((f"{path}, item {number}", number, item) for number, item in enumerate(listed, 1))
            return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, number, json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}. The file must be {_WHAT}.") from None


def _listed(path: Path, text: str) -> list[Any] | None:
    """The records of a file that is one list of them, as ShareGPT's files are, or one record over several lines.

    Raises:
        ValueError: If it begins like a list, and is neither one nor JSON lines.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        first = text.partition("\n")[0]
        if text.startswith("[") and not _is_json(first):
            raise ValueError(f"{path} begins like a list in JSON, but is none: {error}. It must be {_WHAT}.") from None
        return None
    return found if isinstance(found, list) else [found]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _key(item: Any) -> str | None:
    """The name under which a record holds its messages."""
    found = (key for key in TURN_KEYS if isinstance(item, Mapping) and isinstance(item.get(key), list))
    return next(found, None)


def _dialogue(name: str, where: str, item: Any, task: RatingTask) -> tuple[Dialogue, int, int]:
    """A dialogue, and how many of its ratings and messages are left out."""
    key = _key(item)
    if key is None:
        found = f"has the keys {sorted(item)[:12]}" if isinstance(item, Mapping) else f"is a {type(item).__name__}"
        raise ValueError(
            f"{where} has no list of messages under {', '.join(map(repr, TURN_KEYS))}: it {found}. Rename or convert "
            f"its fields: the file must be {_WHAT}."
        )
    given: Any = next((item[name] for name in ("ratings", "rating") if item.get(name) is not None), ())
    given = given if isinstance(given, (list, tuple)) else [given]
    ratings, lost = numbers(given, task.values[0], task.values[-1], where)
    response = response_text(item.get("response"), where)
    turns, left_out = turns_of(item[key], where, response is not None)
    if not turns and response is None:
        raise ValueError(
            f"{where} has no message of a user or an assistant and no response, so nothing to rate. Leave it out."
        )
    known = {key, "id", "ratings", "rating", "response"}
    meta = {name: str(value) for name, value in item.items() if name not in known and isinstance(value, _PLAIN)}
    name = name if item.get("id") is None else str(item["id"])
    return Dialogue(name, turns, ratings, response, meta), lost, left_out


_PLAIN = (str, int, float, bool)
