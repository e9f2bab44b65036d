"""User Satisfaction Simulation (USS): task-oriented dialogues whose users' satisfaction is rated from 1 to 5."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.dialogue.data.module import DialogueDataModule, Label
from lightning_unlearn.dialogue.data.reading import RatedDialogues, existing, numbers, read_text
from lightning_unlearn.dialogue.dialogue import Dialogue, Role, Turn

__all__ = ["USSDialogues", "USSSubset", "read_uss"]

USSSubset = Literal["MWOZ", "SGD", "ReDial", "CCPE"]

_WHAT = "a file of User Satisfaction Simulation such as SGD.txt"
_ROLES: dict[str, Role] = {"USER": "user", "SYSTEM": "assistant"}


class _Row(NamedTuple):
    line: int
    role: Role
    text: str
    ratings: tuple[float, ...]


class USSDialogues(DialogueDataModule):
    """Dialogues of User Satisfaction Simulation, from a file of its authors.

    Rows are ``role``, ``text``, ``action`` and ``ratings``, separated by tabs; an empty line stands between sessions.
    The last row of a session has the text ``OVERALL`` and the ratings of the whole dialogue; the other rows of the user
    have ratings of their own.

    Args:
        path: A file such as ``SGD.txt``, or the folder with it.
        subset: ``"MWOZ"``, ``"SGD"``, ``"ReDial"`` or ``"CCPE"``, where ``path`` is a folder.
        label: See [`DialogueDataModule`][lightning_unlearn.DialogueDataModule].
        turn_level: Whether each turn of the user is rated and not the dialogue.
        reaction: Whether a rated turn is shown, after what precedes it. The authors' models see only what precedes it;
            then a first turn, which nothing precedes, is left out.
        batch_size: Dialogues in a batch.
        seed: Seed of the split and of shuffling.
        num_workers: Processes that load data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another format, or a rating is not in [1, 5].

    References:
        Sun et al., *Simulating User Satisfaction for the Evaluation of Task-oriented Dialogue Systems*,
        arXiv:2105.03748.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        subset: USSSubset | None = None,
        label: Label = "mean",
        turn_level: bool = False,
        reaction: bool = True,
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        read = read_uss(_file(Path(path), subset), turn_level, reaction)
        super().__init__(read, label=label, batch_size=batch_size, seed=seed, num_workers=num_workers)


def read_uss(path: str | os.PathLike[str], turn_level: bool = False, reaction: bool = True) -> RatedDialogues:
    """The dialogues of a file of USS, or the turns of its users.

    Args:
        path: The file.
        turn_level: Whether each turn of the user is rated and not the dialogue.
        reaction: Whether a rated turn is shown, after what precedes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another format, or a rating is not in [1, 5].
    """
    path = existing(path, _WHAT)
    dialogues: list[Dialogue] = []
    dropped = first_turns = 0
    for number, session in enumerate(_sessions(path)):
        rows, lost = _rows(path, session)
        dropped += lost
        name = f"{path.stem}-{number}"
        turns = tuple(Turn(row.role, row.text) for row in rows[:-1])
        if not turn_level:
            dialogues.append(Dialogue(name, turns, rows[-1].ratings, meta={"dialogue": name}))
            continue
        for place, row in enumerate(rows[:-1]):
            if row.role == "user":
                shown = turns[: place + reaction]
                first_turns += not shown
                if shown:
                    dialogues.append(Dialogue(f"{name}-{place}", shown, row.ratings, meta={"dialogue": name}))
    if not dialogues:
        raise ValueError(f"{path} holds no session.")
    return RatedDialogues(dialogues, dropped, first_turns)


def _file(path: Path, subset: str | None) -> Path:
    if subset is not None:
        one_of("subset", subset, USSSubset)
    if not path.is_dir():
        if subset is not None and subset.lower() not in path.stem.lower():
            raise ValueError(f"subset is {subset!r}, but path is the file {path}. Give the folder, or no subset.")
        return path
    if subset is None:
        raise ValueError(f"{path} is a folder, so subset says which of its files is read: MWOZ, SGD, ReDial or CCPE.")
    found = sorted(file for file in path.glob("*.txt") if file.stem.lower().split("_")[-1] == subset.lower())
    if len(found) != 1:
        raise FileNotFoundError(
            f"{path} must have one file {subset}.txt, but has {', '.join(file.name for file in found) or 'none'}."
        )
    return found[0]


def _sessions(path: Path) -> Iterator[list[tuple[int, str]]]:
    """The lines of each session, with their numbers."""
    session: list[tuple[int, str]] = []
    # Not splitlines(): texts may hold other separators of lines.
    for number, line in enumerate(read_text(path, _WHAT).split("\n"), 1):
        if line.strip():
            session.append((number, line.rstrip("\r")))
        elif session:
            yield session
            session = []
    if session:
        yield session


def _rows(path: Path, session: list[tuple[int, str]]) -> tuple[list[_Row], int]:
    """The rows of a session, and how many ratings are no numbers."""
    rows, dropped = [], 0
    for line, content in session:
        where, cells = f"{path}, line {line}", content.split("\t")
        if len(cells) != 4:
            raise ValueError(
                f"{where} has {len(cells)} cells, but rows of USS have 4, separated by tabs: role, text, action and "
                f"ratings. It is {content[:60]!r}."
            )
        role, text, _, ratings = cells
        if role.strip().upper() not in _ROLES:
            raise ValueError(f"{where}: the role must be USER or SYSTEM, but is {role!r}.")
        speaker = _ROLES[role.strip().upper()]
        values, lost = numbers(ratings.split(","), 1, 5, where) if ratings.strip() else ((), 0)
        if speaker == "user" and not values:
            raise ValueError(
                f"{where}: a row of the user has ratings such as 3,3,4 in its last cell, but this has none."
            )
        rows.append(_Row(line, speaker, text, values))
        dropped += lost
    overall = [row.text.strip() == "OVERALL" and row.role == "user" for row in rows]
    if not overall[-1] or sum(overall) != 1:
        raise ValueError(
            f"{path}: the session in lines {session[0][0]}-{session[-1][0]} must end with its one row USER, OVERALL, "
            f"with the ratings of the dialogue, but {'has several' if sum(overall) > 1 else 'does not'}."
        )
    if len(rows) == 1:
        raise ValueError(f"{path}, line {session[0][0]}: the session has no turn before its OVERALL.")
    return rows, dropped
