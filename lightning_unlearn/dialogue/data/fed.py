"""FED: open conversations with Meena, Mitsuku and people, and responses in them, rated in 18 aspects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.dialogue.data.module import DialogueDataModule, Label
from lightning_unlearn.dialogue.data.reading import RatedDialogues, existing, numbers, read_json
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn

__all__ = ["FEDDialogues", "Level", "read_fed"]

Level = Literal["dialogue", "turn"]

_SPEAKERS = {"User": "user", "System": "assistant"}
_HIGHEST = {"Overall": 4.0, "Consistent": 1.0, "Understandable": 1.0}  # 2 for all other aspects
_WHAT = "fed_data.json of its authors, a list of {context, system, annotations}, and response for a turn"


class FEDDialogues(DialogueDataModule):
    """The dialogues of FED, or the responses in them, with the ratings of five annotators.

    Args:
        path: The authors' ``fed_data.json``.
        level: Whether ``"dialogue"``s are rated (125) or a ``"turn"`` of the system (375).
        aspect: What is rated: ``"Overall"``, or another aspect of that level, such as ``"Coherent"``.
        label: See [`DialogueDataModule`][lightning_unlearn.DialogueDataModule].
        batch_size: Dialogues in a batch.
        seed: Seed of the split and of shuffling. Turns of one conversation stay on one side.
        num_workers: Processes that load data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another format, a rating is out of range, or the level has no such aspect.

    References:
        Mehri and Eskenazi, *Unsupervised Evaluation of Interactive Dialog with DialoGPT*, arXiv:2006.12719.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        level: Level = "dialogue",
        aspect: str = "Overall",
        label: Label = "mean",
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        read = read_fed(path, level, aspect)
        super().__init__(read, label=label, batch_size=batch_size, seed=seed, num_workers=num_workers)


def read_fed(path: str | os.PathLike[str], level: Level = "dialogue", aspect: str = "Overall") -> RatedDialogues:
    """The dialogues of FED, or the responses in them.

    Args:
        path: The authors' ``fed_data.json``.
        level: Whether dialogues or turns are rated.
        aspect: What is rated.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another format, a rating is out of range, or the level has no such aspect.
    """
    one_of("level", level, Level)
    path = existing(path, _WHAT)
    items = read_json(path, _WHAT)
    dialogues, dropped, unrated = [], 0, 0
    for number, item in enumerate(items):
        where = f"{path}, item {number}"
        if not isinstance(item, Mapping) or not {"context", "system", "annotations"} <= set(item):
            raise ValueError(f"{where} must have a context, a system and annotations. The file must be {_WHAT}.")
        if ("response" in item) != (level == "turn"):
            continue
        one_of(f"{where}: aspect", aspect, tuple(item["annotations"]), f"a {level} is rated in these")
        ratings, lost = numbers(item["annotations"][aspect], 0, _HIGHEST.get(aspect, 2.0), where)
        dropped += lost
        unrated += not ratings
        if ratings:
            response = _turn(item["response"], where).text if level == "turn" else None
            turns = tuple(_turn(line, where) for line in item["context"].split("\n"))
            meta = {"system": str(item["system"]), "dialogue": f"fed-{_conversation(items, number)}"}
            dialogues.append(Dialogue(f"fed-{number}", turns, ratings, response, meta))
    if not dialogues:
        raise ValueError(f"{path} has no {level}s with ratings of {aspect!r}.")
    return RatedDialogues(dialogues, dropped, unrated)


def _turn(line: str, where: str) -> Turn:
    speaker, mark, text = line.partition(":")
    if not mark or speaker not in _SPEAKERS:
        raise ValueError(f"{where}: each line must begin with 'User:' or 'System:', but got {line[:60]!r}.")
    return Turn(_SPEAKERS[speaker], text.strip())  # type: ignore[arg-type]


def _conversation(items: Sequence[Any], number: int) -> int:
    """The item of the whole conversation, which is the next one that begins like an item."""
    for later in range(number, len(items)):
        whole = items[later]
        if "response" not in whole and str(whole.get("context")).startswith(items[number]["context"]):
            return later
    return number
