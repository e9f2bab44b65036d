"""The same rows for every entry: about 62 tokens, half of them answer."""

from __future__ import annotations

from typing import Any

WORDS = """river stone winter garden letter music window harbor copper silver morning evening forest valley bridge paper
candle mirror summer thunder island desert meadow castle village lantern orchard mountain ocean station""".split()  # noqa: SIM905


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions, answers and other answers of about 31 tokens each."""

    def text(start: int) -> str:
        return " ".join(WORDS[(start + 7 * i) % len(WORDS)] for i in range(27))

    return [
        {
            "question": f"{text(seed + i)}?",
            "answer": f"{text(seed + i + 11)}.",
            "alternate": [f"{text(seed + i + 17)}."],
        }
        for i in range(count)
    ]
