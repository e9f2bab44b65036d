"""Synthetic files in the format of User Satisfaction Simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dialogue.judges import tiny_lm_of

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


@pytest.fixture(scope="session")
def long_lm(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that tells dialogues apart and has room for several of them."""
    lm = tiny_lm_of(tiny_lm)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    lm.save_pretrained(folder)
    return folder
