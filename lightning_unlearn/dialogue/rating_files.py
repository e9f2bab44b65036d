"""Files of ratings that a run continues."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.progress import counter
from lightning_unlearn.dialogue.data.splitting import conversation_of
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.rating import RatesDialogues, Rating

__all__ = ["RatingFile", "check_same_judge", "files_digest", "seen", "without_nan"]


class RatingFile:
    """Ratings of dialogues, one a line, written as the judge gives them.

    Args:
        path: The file; one that is there is continued. A last line that a kill has cut off is removed.

    Raises:
        ValueError: If it is there and holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
        for number, line in enumerate(whole.split("\n"), 1):
            if line:
                row = _row(path, number, line)
                self._rows[row["key"]] = row
        if rest:
            write_text(path, f"{whole}\n" if whole else "")

    def check_of(self, dialogues: Sequence[Dialogue]) -> None:
        """Refuse a file with ratings of other dialogues.

        Args:
            dialogues: All that the file may have ratings of.

        Raises:
            ValueError: If there are ratings of others.
        """
        others = self._rows.keys() - set(map(_key, dialogues))
        if others:
            names = sorted(str(self._rows[key].get("id")) for key in others)
            raise ValueError(
                f"{self.path} has ratings of {len(others)} dialogues that are not in the data, or not as they are now, "
                f"such as {names[0]!r}. Give another --output_dir, or delete the file to rate again."
            )

    def rate(self, judge: Callable[[], RatesDialogues], dialogues: Sequence[Dialogue], batch_size: int) -> list[Rating]:
        """Ratings of dialogues; those that the file has are not computed again.

        Args:
            judge: Gives the judge; called only if a rating is missing.
            dialogues: What is to be rated.
            batch_size: Dialogues rated between two writes.
        """
        keys = list(map(_key, dialogues))
        missing = [place for place, key in enumerate(keys) if key not in self._rows]
        with counter("rated", len(keys), len(keys) - len(missing), "dialogue") as progress:
            for start in range(0, len(missing), batch_size):
                places = missing[start : start + batch_size]
                found = judge().rate([dialogues[place] for place in places])
                with self.path.open("a", encoding="utf-8") as file:
                    for place, rating in zip(places, found, strict=True):
                        row = {"id": dialogues[place].id, "key": keys[place], **without_nan(asdict(rating))}
                        self._rows[keys[place]] = row
                        file.write(_line(row))
                progress.update(len(places))
        return [_rating(self._rows[key]) for key in keys]

    def sort_as(self, dialogues: Sequence[Dialogue]) -> None:
        """Write the ratings in the order of the dialogues.

        Args:
            dialogues: All that the file may have ratings of.
        """
        rows = [self._rows[key] for key in map(_key, dialogues) if key in self._rows]
        write_text(self.path, "".join(map(_line, rows)))


def check_same_judge(folder: Path, settings: dict[str, Any], data: Path) -> None:
    """Store the settings of a judge, and refuse a folder with ratings of another one.

    Args:
        folder: Where ratings are written.
        settings: Everything that ratings depend on beside the dialogue.
        data: The file of dialogues, which must not be a file that the folder's ratings go to.

    Raises:
        ValueError: If there are ratings, and other settings or none.
    """
    path = folder / "settings.json"
    files = [folder / f"{name}ratings.jsonl" for name in ("", "calibration_", "fingerprint_")]
    if any(file.exists() and file.resolve() == data.resolve() for file in files):
        raise ValueError(f"{data} would be overwritten with ratings. Give another --output_dir.")
    if any(file.exists() and file.stat().st_size for file in files):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise ValueError(
                f"{folder} holds ratings, but no {path.name} that says which judge they are of. Give another "
                "--output_dir."
            )
        if before != settings:
            changed = {name: (before.get(name), value) for name, value in settings.items() if before.get(name) != value}
            raise ValueError(
                f"{folder} holds ratings of a judge with other settings: {changed} (before, now). Give another "
                "--output_dir."
            )
    write_text(path, json.dumps(settings, indent=2) + "\n")


def seen(dialogues: Sequence[Dialogue], ratings: bool = False) -> str:
    """A hash of the parts of dialogues that a judge sees.

    Args:
        dialogues: The dialogues.
        ratings: Whether it sees their ratings too, as those of examples.
    """
    texts = [[dialogue.text, *(map(float, dialogue.ratings) if ratings else ())] for dialogue in dialogues]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def files_digest(path: str) -> str | None:
    """A hash of the names, sizes and times of the files of a model on this machine; ``None`` for a hub id."""
    place = Path(path).expanduser()
    if not place.exists():
        return None
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    facts = [[str(file.relative_to(place)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def without_nan(value: Any) -> Any:
    """The value with NaN replaced by ``None``, which JSON writes as ``null``."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(dialogue: Dialogue) -> str:
    """What a rating depends on: the text, and what selectors of examples go by."""
    return f"{dialogue.id} {seen([dialogue])} {conversation_of(dialogue)}"


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        _rating(row)
        return {"key": row["key"], **row}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number} is no rating of this command ({type(error).__name__}: {error}). Give another "
            "--output_dir, or delete the file to rate again."
        ) from None


def _rating(row: dict[str, Any]) -> Rating:
    values = {name: value for name, value in row.items() if name not in ("id", "key")}
    values["score"] = math.nan if values["score"] is None else values["score"]
    probs = values.pop("probs")
    return Rating(**values, probs=None if probs is None else tuple(probs))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
