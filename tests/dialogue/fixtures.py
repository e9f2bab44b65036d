"""Small rated dialogues of our own, and files of them in the formats of published sets."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_unlearn.dialogue.dialogue import Dialogue, Turn

SESSIONS = [
    [("USER", "I need a room", "3,3,4"), ("SYSTEM", "For how many?", ""), ("USER", "Two", "3,3,3"), ("4,4,3,3",)],
    [("USER", "Find a train to Leeds", "2,3,2"), ("SYSTEM", "To Luton?", ""), ("USER", "No!", "1,2,2"), ("2,3",)],
    [("SYSTEM", "Hello", ""), ("USER", "What's the weather?", "3,3,3"), ("3,3,4",)],
    [("USER", "Play some jazz", "4,4,3"), ("SYSTEM", "Here it is", ""), ("USER", "Lovely", "5,5,4"), ("5,5,4",)],
    [("USER", "Book a table", "3,3,3"), ("SYSTEM", "Done", ""), ("4,3,4",)],
]


def uss_text() -> str:
    """Five sessions as the authors of USS write them."""
    lines: list[str] = []
    for session in SESSIONS:
        lines += [f"{role}\t{text}\tINFORM\t{ratings}" for role, text, ratings in session[:-1]]
        lines += [f"USER\tOVERALL\t\t{session[-1][0]}", ""]
    return "\n".join(["", *lines])


def fed_items() -> list[dict]:
    """A conversation with two rated turns, another one with one."""
    return [
        {
            "context": "User: Hi!\nSystem: Hi: how are you?\nUser: Fine",
            "response": "System: Great",
            "system": "Meena",
            "annotations": {"Overall": [3, 4, "N/A (cut off)", 3, 4], "Fluent": [2, 2, 1, 2, 2]},
        },
        {
            "context": "User: Hi!\nSystem: Hi: how are you?\nUser: Fine\nSystem: Great\nUser: Bye",
            "response": "System: Bye",
            "system": "Meena",
            "annotations": {"Overall": [2, 2, 2, 3, 3], "Fluent": [2, 2, 2, 2, 2]},
        },
        {
            "context": "User: Hi!\nSystem: Hi: how are you?\nUser: Fine\nSystem: Great\nUser: Bye",
            "system": "Meena",
            "annotations": {"Overall": [3, 3, 3, 2, 4], "Error recovery": ["N/A (no errors)"] * 5},
        },
        {
            "context": "User: Tell me a joke",
            "response": "System: No",
            "system": "Human",
            "annotations": {"Overall": [0, 1, 0, 1, 1], "Fluent": [2, 2, 2, 2, 2]},
        },
        {
            "context": "User: Tell me a joke",
            "system": "Human",
            "annotations": {"Overall": [1, 1, 1, 1, 1], "Error recovery": [2, 1, "N/A", 0, 1]},
        },
    ]


def usr_items() -> list[dict]:
    """Two contexts with three and two responses."""
    scales = {"Understandable": [1, 1, 0], "Natural": [3, 2, 1], "Engaging": [1, 1, 3]}
    answers = [("hi there\n", [5, 4, 4]), ("i am .\n", [1, 2, 1]), ("no\n", [3, 3, 3])]
    return [
        {
            "context": context,
            "fact": "your persona: i like tea.\n",
            "responses": [{"response": text, "model": "M", "Overall": rated, **scales} for text, rated in answers[:n]],
        }
        for context, n in (("hello\nhi\nhow are you ?\n", 3), ("good morning\n", 2))
    ]


def write(path: Path, content: str | list) -> Path:
    """A file with a text or JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rated(*ratings: float, start: int = 0) -> list[Dialogue]:
    """Dialogues with a rating each, whose text says nothing."""
    return [Dialogue(str(start + i), (Turn("user", f"word{i}"),), (r,)) for i, r in enumerate(ratings)]


def texts(*words: str) -> list[Dialogue]:
    """Dialogues of one message each."""
    return [Dialogue(f"t{i}", (Turn("user", text),), (3.0,)) for i, text in enumerate(words)]
