from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import DialogueSeed, Turn, converse, neutral_seeds, probe_seeds, read_seeds
from lightning_unlearn.language.probes import probes_of


def test_the_model_answers_what_has_no_answer() -> None:
    given = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    open_seed = DialogueSeed("2", "retain", (Turn("user", "d"), Turn("user", "e")), system="Be brief.")
    asked: list[list[list[dict[str, Any]]]] = []

    def answer(messages: list[list[dict[str, Any]]]) -> list[str]:
        asked.append(messages)
        return [f"answer {len(asked)}.{place}" for place in range(len(messages))]

    first, second = converse([DialogueSeed("1", "neutral", given), open_seed], answer)
    assert [turn.text for turn in first.turns] == ["a", "b", "c", "answer 1.0"]
    assert [turn.text for turn in second.turns] == ["d", "answer 1.1", "e", "answer 2.0"]
    assert [len(part) for part in asked] == [2, 1]  # together
    assert asked[1][0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "answer 1.1"},
        {"role": "user", "content": "e"},
    ]
    assert (first.meta["set"], second.meta["set"]) == ("neutral", "retain")
    assert [turn.text for turn in open_seed.opening().turns] == ["d"]
    with pytest.raises(ValueError, match="got 0 answers"):
        converse([open_seed], lambda messages: [])


def test_the_neutral_seeds_are_conversations() -> None:
    seeds = neutral_seeds()
    assert len({seed.id for seed in seeds}) == len(seeds) == 24
    assert all(seed.set == "neutral" and sum(t.role == "user" for t in seed.turns) >= 2 for seed in seeds)


def test_rows_become_seeds() -> None:
    rows: list[dict[str, Any]] = [{"question": f"What is {i}?", "answer": "It is."} for i in range(40)]
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "v"},
        {"role": "user", "content": "w"},
        {"role": "assistant", "content": "x"},
    ]
    seeds = probe_seeds(probes_of(rows), "retain", limit=4)
    assert [seed.turns[0].text for seed in seeds] == ["What is 0?", "What is 10?", "What is 20?", "What is 30?"]
    assert len({seed.turns[1].text for seed in seeds}) == 4
    (seed,) = probe_seeds(probes_of([{"messages": talk}]), "forget", follow_ups=())
    assert ([turn.text for turn in seed.turns], seed.system) == (["u", "v", "w"], "S")


def test_seeds_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text(json.dumps({"set": "forget", "messages": [{"role": "user", "content": "Who?"}]}))
    (seed,) = read_seeds(path)
    assert (seed.id, seed.set, seed.turns) == ("forget 0", "forget", (Turn("user", "Who?"),))
    for row, match in (
        ({"messages": [{"role": "user", "content": "a"}]}, "does not say its 'set'"),
        ({"set": "neutral", "text": "a"}, "needs 'messages'"),
        ({"set": "other", "messages": [{"role": "user", "content": "a"}]}, "set must be"),
        ({"set": "neutral", "messages": [{"role": "tool", "content": "a"}]}, "messages of"),
        ({"set": "neutral", "messages": [{"role": "assistant", "content": "a"}]}, "at its end"),
        ({"set": "neutral", "messages": []}, "at its end"),
    ):
        with pytest.raises(ValueError, match=match):
            read_seeds([row])


@pytest.mark.parametrize("answers", [lambda asked: "x" * len(asked), lambda asked: [None] * len(asked)])
def test_answers_that_are_no_list_of_texts_are_refused(answers: Any) -> None:
    with pytest.raises(TypeError, match="must be a list with one text for each conversation"):
        converse(neutral_seeds()[:2], answers)
