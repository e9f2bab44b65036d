"""Ratings as files hold them, and what is kept of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.dialogue.dialogue import Dialogue

__all__ = ["RatedDialogues", "existing", "numbers", "read_json", "read_text"]


@dataclass(frozen=True)
class RatedDialogues:
    """The dialogues of a file, and what it holds beside them.

    Args:
        dialogues: All that can be used.
        dropped_ratings: Ratings that are no numbers, such as ``"N/A (no errors)"``, and are left out.
        dropped_dialogues: Dialogues that are left out because no rating of them is a number, or nothing precedes what
            is rated.
        dropped_messages: Messages that neither user nor assistant says, such as system prompts and results of tools,
            and are left out.
    """

    dialogues: list[Dialogue]
    dropped_ratings: int = 0
    dropped_dialogues: int = 0
    dropped_messages: int = 0


def existing(path: str | os.PathLike[str], what: str) -> Path:
    """A path, if there is a file.

    Raises:
        FileNotFoundError: If there is none.
    """
    if Path(path).is_dir():
        raise FileNotFoundError(f"{path} is a folder. Give the file in it, which must be {what}.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}. It must be {what}, which this library does not ship.")
    return Path(path)


def read_text(path: Path, what: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: If it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8: {error}. It must be {what}. Convert a file in another encoding, such as "
            f"with iconv -f UTF-16 -t UTF-8."
        ) from None


def read_json(path: Path, what: str) -> list[Any]:
    """The list in a JSON file.

    Raises:
        ValueError: If it is no JSON, or no list.
    """
    text = read_text(path, what)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. It must be {what}.") from None
    if not isinstance(content, list):
        raise ValueError(f"{path} must hold a list of dialogues, but holds a {type(content).__name__}.")
    return content


def numbers(ratings: Iterable[Any], low: float, high: float, where: str) -> tuple[tuple[float, ...], int]:
    """The ratings that are numbers, and how many are not.

    Args:
        ratings: As they stand in the file; ``"N/A..."``, empty strings and nothing are left out.
        low: Lowest rating of the scale.
        high: Highest rating of the scale.
        where: Place in the file, for messages.

    Raises:
        ValueError: If one is neither a number nor missing, or is out of range.
    """
    kept, dropped = [], 0
    for rating in ratings:
        if rating is None or (isinstance(rating, str) and (not rating.strip() or rating.strip()[:2].lower() in _NONE)):
            dropped += 1
            continue
        try:
            value = math.nan if isinstance(rating, bool) else float(rating)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{where}: {rating!r} is no rating. Ratings are numbers, or 'N/A' where there is none.")
        if not low <= value <= high:
            raise ValueError(
                f"{where}: the rating {rating} is not in [{low:g}, {high:g}]. Is this another scale, or another column?"
            )
        kept.append(value)
    return tuple(kept), dropped


_NONE = ("n/", "na")  # "N/A (no errors)", "NA", "nan"
