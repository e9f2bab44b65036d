"""Dialogues in JSON lines, the format for data of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_unlearn.dialogue.data.module import DialogueDataModule, Label
from lightning_unlearn.dialogue.data.reading import RatedDialogues, existing, numbers
from lightning_unlearn.dialogue.dialogue import Dialogue, Role, Turn
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask, task_of

__all__ = ["JSONLDialogues", "read_jsonl"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "agent"), "assistant"),
}
_WHAT = 'a file with a line such as {"turns": [{"role": "user", "text": "Hi"}], "ratings": [3, 4]} for each dialogue'


class JSONLDialogues(DialogueDataModule):
    """Dialogues of a file with one JSON object a line.

    ``turns`` (or ``messages``, ``conversations``) is a list of ``{"role": ..., "text": ...}``, of
    ``{"role": ..., "content": ...}``, or of ``{"from": ..., "value": ...}``. There may be an ``id``, ``ratings`` (or
    one ``rating``), and a ``response`` where that is rated and not the dialogue. Whatever else is a string, a number or
    a boolean is kept in ``meta``; lines with the same ``dialogue`` stay on one side of the split.

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
    """The dialogues of a file with one JSON object a line; those without ratings too.

    Args:
        path: The file.
        task: The scale that ratings must be on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is of another format, two have the same ``id``, or a rating is not on the scale.
    """
    task, path = task_of(task), existing(path, _WHAT)
    dialogues, dropped = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            dialogue, lost = _dialogue(path, number, line, task)
            dialogues.append(dialogue)
            dropped += lost
    if not dialogues:
        raise ValueError(f"{path} is empty. It must be {_WHAT}.")
    return RatedDialogues(dialogues, dropped)


def _dialogue(path: Path, number: int, line: str, task: RatingTask) -> tuple[Dialogue, int]:
    where = f"{path}, line {number}"
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}. The file must be {_WHAT}.") from None
    key = next((key for key in ("turns", "messages", "conversations") if isinstance(item, Mapping) and key in item), "")
    if not key or not isinstance(item[key], list):
        raise ValueError(f"{where} has no list of turns. The file must be {_WHAT}.")
    given = item.get("ratings", item.get("rating", ()))
    given = given if isinstance(given, (list, tuple)) else [given]
    ratings, lost = numbers(given, task.values[0], task.values[-1], where)
    turns = tuple(_turn(turn, where) for turn in item[key])
    if not turns and item.get("response") is None:
        raise ValueError(f"{where} has an empty list of turns and no response, so there is nothing to rate.")
    known = {key, "id", "ratings", "rating", "response"}
    meta = {name: str(value) for name, value in item.items() if name not in known and isinstance(value, _PLAIN)}
    return Dialogue(str(item.get("id", f"{path.stem}-{number}")), turns, ratings, item.get("response"), meta), lost


def _turn(turn: Any, where: str) -> Turn:
    role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    text = next((turn[key] for key in ("text", "content", "value") if key in turn), None) if role is not None else None
    if not isinstance(role, str) or not isinstance(text, str):
        raise ValueError(f"{where}: a turn must have a role and a text, but is {str(turn)[:80]}.")
    if role.lower() not in _ROLES:
        hint = " It is no one's turn: leave a system prompt out." if role.lower() == "system" else ""
        raise ValueError(f"{where}: a role must be 'user' or 'assistant', but is {role!r}.{hint}")
    return Turn(_ROLES[role.lower()], text)


_PLAIN = (str, int, float, bool)
