"""Files of dialogues as other tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.dialogue.data.jsonl import JSONLDialogues, read_jsonl

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SAID = [("user", "Hi"), ("assistant", "Hello")]
CALL = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
REFUSAL = {"role": "assistant", "content": None, "refusal": "Hello"}


def shared(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def one(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "left_out"),
    [
        ({"messages": [USER, ASSISTANT]}, 0),
        ({"messages": [{"role": "system", "content": "Be brief"}, USER, ASSISTANT]}, 1),
        ({"messages": [{"role": "developer", "content": "Be brief"}, USER, ASSISTANT]}, 1),
        ({"messages": [USER, CALLS, {"role": "tool", "tool_call_id": "1", "content": "9:00"}, ASSISTANT]}, 2),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [CALL]}]}, 0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]}, 0),
        ({"messages": [USER, REFUSAL]}, 0),
        ({"conversations": [shared("human", "Hi"), shared("gpt", "Hello")]}, 0),
        ({"conversations": [shared("system", "x"), shared("human", "Hi"), shared("gpt", "Hello")]}, 1),
        (
            {
                "conversations": [
                    *map(shared, ("human", "function_call", "observation", "gpt"), ("Hi", "", "", "Hello"))
                ]
            },
            2,
        ),
        ({"conversation_id": "c", "conversation": [USER, ASSISTANT]}, 0),
    ],
)
def test_chat_formats_are_read_as_what_user_and_assistant_say(tmp_path: Path, row: dict, left_out: int) -> None:
    read = read_jsonl(one(tmp_path / "chat.jsonl", row))
    assert [(turn.role, turn.text) for turn in read.dialogues[0].turns] == SAID
    assert read.dropped_messages == left_out
    assert JSONLDialogues(tmp_path / "chat.jsonl").dropped_messages == left_out


def test_turns_of_one_role_in_a_row_empty_ones_and_a_single_one_stay(tmp_path: Path) -> None:
    texts = ["日本語 🎉\u2028line", "", "x" * 100_000]
    rows = [{"messages": [{"role": "user", "content": text} for text in texts]}, {"messages": [USER]}]
    long, single = read_jsonl(one(tmp_path / "a.jsonl", *rows)).dialogues
    assert [(turn.role, turn.text) for turn in long.turns] == [("user", text) for text in texts]
    assert len(single.turns) == 1


def test_a_file_that_is_one_list_and_ids_that_are_null(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    rows = [{"id": None, "conversations": [shared("human", "Hi"), shared("gpt", "Hello")]}] * 2
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8-sig")
    assert [dialogue.id for dialogue in JSONLDialogues(path).dialogues] == ["sharegpt-1", "sharegpt-2"]


def test_ratings_in_text_floats_and_null(tmp_path: Path) -> None:
    rows = [{"messages": [USER], **more} for more in (
        {"ratings": ["3", "4.0"]}, {"rating": 3.5}, {"ratings": None, "rating": 4}, {"rating": None}, {},
    )]  # fmt: skip
    read = read_jsonl(one(tmp_path / "a.jsonl", *rows))
    assert [dialogue.ratings for dialogue in read.dialogues] == [(3, 4), (3.5,), (4,), (), ()]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        # As task-oriented sets name the assistant: leaving it out would rate the user alone.
        ({"messages": [USER, {"role": "SYSTEM", "content": "For how many?"}]}, "if 'system' is who answers the user"),
        ({"messages": [{"role": "SYSTEM", "content": "Hello"}, USER]}, "and none of the assistant"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "a role must be 'user' or 'assistant', but is 'narrator'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "of type 'image_url'"),
        ({"messages": [{"role": "assistant", "content": None}]}, "must have a role and a text"),
        ({"messages": [CALLS]}, "nothing to rate"),
        ({"turns": ["Hi", "Hello"]}, "must have a role and a text"),
        ({"messages": [USER], "response": ["x"]}, "response must be a string or one message"),
        ({"messages": [USER], "ratings": {"overall": 3}}, "is no rating"),
        (
            {"prompt": "Hi", "completion": "Hello"},
            r"has no list of messages under .*has the keys \['completion', 'prompt'\]",
        ),
        ({"conversations": []}, "nothing to rate. Leave it out"),
        ({"turns": [{"speaker": "USER", "utterance": "Hi"}]}, r'such as \{"role": "user", .* but is .*utterance'),
        ([USER, ASSISTANT], "has no list of messages"),
    ],
)
def test_what_could_be_read_wrongly_is_refused(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_jsonl(one(tmp_path / "a.jsonl", row))


def test_a_response_may_be_a_message(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "x"}, USER], "response": ASSISTANT}
    assert read_jsonl(one(tmp_path / "a.jsonl", row)).dialogues[0].response == "Hello"


def test_tables_and_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("id,text,rating\n1,Hi,3\n")
    with pytest.raises(ValueError, match=r"line 1 is no JSON.*must be JSON lines"):
        read_jsonl(path)
    path.write_text(json.dumps({"messages": [USER]}), encoding="utf-16")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_jsonl(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_wrong_record_of_a_list_is_named(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"messages": [USER, ASSISTANT]}, {"prompt": "Hi"}], indent=indent))
    with pytest.raises(ValueError, match=r"item 2 has no list of messages.*has the keys \['prompt'\]"):
        read_jsonl(path)


def test_one_record_over_several_lines_and_a_list_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"messages": [USER, ASSISTANT]}, indent=2))
    assert len(read_jsonl(path).dialogues[0].turns) == 2
    path.write_text(json.dumps({"PMUL": {"log": []}, "SNG": {"log": []}}, indent=2))
    with pytest.raises(ValueError, match=r"item 1 has no list of messages.*has the keys \['PMUL', 'SNG'\]"):
        read_jsonl(path)
    path.write_text(json.dumps([{"messages": [USER, ASSISTANT]}] * 2, indent=2)[:-20])
    with pytest.raises(ValueError, match=r"begins like a list in JSON, but is none: .*line \d\d"):
        read_jsonl(path)
    with pytest.raises(FileNotFoundError, match=r"is a folder\. Give the file in it"):
        read_jsonl(tmp_path)
