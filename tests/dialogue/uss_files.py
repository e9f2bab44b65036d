"""Synthetic files in the format of User Satisfaction Simulation."""

from __future__ import annotations

import json
from pathlib import Path

GOOD, BAD = "Great, thank you, that is what I want.", "No, that is wrong again."


def write_uss(folder: Path, names: tuple[str, ...] = ("SGD",), count: int = 40) -> Path:
    """A folder with dialogues whose ratings are told by what the user says last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        sessions = []
        for i in range(count):
            last, rating = (GOOD, 5) if i % 2 else (BAD, 1)
            other = 4 if i % 3 else rating
            sessions.append(
                f"USER\tWhere is {name} {i}?\tASK\t3,3\nSYSTEM\tHere.\tINFORM\t\nUSER\t{last}\tEND\t3,3\n"
                f"USER\tOVERALL\t\t{rating},{rating},{other}\n"
            )
        (folder / f"{name}.txt").write_text("\n".join(sessions), encoding="utf-8")
    return folder


def write_jsonl(path: Path, names: range = range(20), rated: bool = True) -> Path:
    """A file of short dialogues."""
    rows = [
        {"id": str(i), "turns": [{"role": "user", "text": f"Is it {i}?"}], "ratings": [1 + i % 5] if rated else []}
        for i in names
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
