from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lightning_unlearn.dialogue.data.fed import FEDDialogues, read_fed
from lightning_unlearn.dialogue.data.jsonl import JSONLDialogues, read_jsonl
from lightning_unlearn.dialogue.data.usr import USRDialogues
from lightning_unlearn.dialogue.data.uss import USSDialogues, read_uss
from lightning_unlearn.dialogue.dialogue import Turn
from tests.dialogue.fixtures import fed_items, usr_items, uss_text, write


def test_uss_rates_a_dialogue_by_its_last_row(tmp_path: Path) -> None:
    data = USSDialogues(write(tmp_path / "SGD.txt", uss_text()))
    assert [dialogue.majority for dialogue in data.dialogues] == [3, 2, 3, 5, 4]  # (4,4,3,3) and (2,3): the lower one
    assert data.dialogues[1].mean == 2.5
    assert data.dialogues[0].turns[1] == Turn("assistant", "For how many?")
    assert all("OVERALL" not in dialogue.text for dialogue in data.dialogues)
    assert len({dialogue.id for dialogue in data.dialogues}) == 5


def test_uss_rates_each_turn_of_the_user_within_its_dialogue(tmp_path: Path) -> None:
    path = write(tmp_path / "SGD.txt", uss_text())
    shown, before = read_uss(path, turn_level=True), read_uss(path, turn_level=True, reaction=False)
    assert (len(shown.dialogues), shown.dropped_dialogues) == (8, 0)
    assert (len(before.dialogues), before.dropped_dialogues) == (4, 4)  # nothing precedes four first turns
    assert shown.dialogues[1].turns[-1] == Turn("user", "Two")
    assert before.dialogues[0].turns[-1] == Turn("assistant", "For how many?")
    assert shown.dialogues[1].ratings == before.dialogues[0].ratings == (3, 3, 3)
    data = USSDialogues(path, turn_level=True)
    sides = [{dialogue.meta["dialogue"] for dialogue in part} for part in (data.pool, data.val, data.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 5


def test_the_majority_takes_the_place_of_all_ratings(tmp_path: Path) -> None:
    data = USSDialogues(write(tmp_path / "SGD.txt", uss_text()), label="majority")
    assert [dialogue.ratings for dialogue in data.dialogues] == [(3,), (2,), (3,), (5,), (4,)]


def test_a_folder_has_a_file_for_each_subset(tmp_path: Path) -> None:
    write(tmp_path / "uss_SGD.txt", uss_text())
    assert len(USSDialogues(tmp_path, "SGD").dialogues) == 5
    with pytest.raises(FileNotFoundError, match=r"one file MWOZ\.txt, but has none"):
        USSDialogues(tmp_path, "MWOZ")
    with pytest.raises(ValueError, match="subset says which"):
        USSDialogues(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (uss_text().replace("\t", ","), "line 2 has 1 cells, but rows of USS have 4, separated by tabs"),
        (uss_text().replace("USER\tOVERALL\t\t2,3\n", ""), "lines 7-9 must end with its one row USER, OVERALL"),
        (uss_text().replace("\n\n", "\n"), "has several"),
        (uss_text().replace("5,5,4", "5,6,4", 1), r"the rating 6 is not in \[1, 5\]"),
        (uss_text().replace("SYSTEM", "AGENT"), "the role must be USER or SYSTEM, but is 'AGENT'"),
        (uss_text().replace("3,3,4", "good", 1), "'good' is no rating"),
        (uss_text().replace("3,3,4", "", 1), "ratings such as 3,3,4 in its last cell, but this has none"),
        ("\n\n", "holds no session"),
    ],
)
def test_a_wrong_file_of_uss_is_refused_with_its_line(tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        USSDialogues(write(tmp_path / "SGD.txt", wrong))


def test_fed_drops_and_counts_what_is_no_number(tmp_path: Path) -> None:
    path = write(tmp_path / "fed_data.json", fed_items())
    turns = FEDDialogues(path, level="turn")
    assert turns.dialogues[0].ratings == (3, 4, 3, 4)
    assert turns.dropped_ratings == 1
    assert turns.dialogues[0].response == "Great"
    assert turns.dialogues[0].turns[1] == Turn("assistant", "Hi: how are you?")
    recovery = read_fed(path, "dialogue", "Error recovery")
    assert (recovery.dropped_ratings, recovery.dropped_dialogues) == (6, 1)
    assert [dialogue.mean for dialogue in recovery.dialogues] == [1.0]


def test_turns_of_fed_know_their_conversation(tmp_path: Path) -> None:
    path = write(tmp_path / "fed_data.json", fed_items())
    turns, whole = read_fed(path, "turn").dialogues, read_fed(path).dialogues
    assert [turn.meta["dialogue"] for turn in turns] == ["fed-2", "fed-2", "fed-4"]
    assert [dialogue.meta["dialogue"] for dialogue in whole] == ["fed-2", "fed-4"]
    assert Counter(dialogue.meta["system"] for dialogue in whole) == {"Meena": 1, "Human": 1}


def test_wrong_files_of_fed_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "fed_data.json", fed_items())
    with pytest.raises(ValueError, match="aspect must be 'Overall' or 'Error recovery', but got 'Fluent'"):
        FEDDialogues(path, aspect="Fluent")
    items = fed_items()
    items[2]["annotations"]["Overall"][0] = 5
    with pytest.raises(ValueError, match=r"item 2: the rating 5 is not in \[0, 4\]"):
        FEDDialogues(write(path, items))
    with pytest.raises(ValueError, match="must have a context, a system and annotations"):
        FEDDialogues(write(path, usr_items()))
    with pytest.raises(ValueError, match="is no JSON"):
        FEDDialogues(write(path, uss_text()))


def test_usr_has_several_responses_to_a_context(tmp_path: Path) -> None:
    data = USRDialogues(write(tmp_path / "usr.json", usr_items()))
    assert [dialogue.response for dialogue in data.dialogues] == ["hi there", "i am .", "no", "hi there", "i am ."]
    assert [turn.role for turn in data.dialogues[0].turns] == ["user", "assistant", "user"]
    assert [dialogue.id for dialogue in data.dialogues[3:]] == ["usr-1-0", "usr-1-1"]
    assert USRDialogues(tmp_path / "usr.json", aspect="Natural").dialogues[0].mean == 2
    with pytest.raises(ValueError, match="must have a response and ratings of 'Uses Knowledge'"):
        USRDialogues(tmp_path / "usr.json", aspect="Uses Knowledge")


def test_json_lines_of_several_dialects(tmp_path: Path) -> None:
    lines = [
        {"turns": [{"role": "user", "text": "Hi"}], "ratings": [3, "N/A", 4], "system": "a", "n": 2},
        {"id": 7, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "rating": 5},
        {"conversations": [{"from": "human", "value": "Hi"}], "response": "Hello"},
    ]
    path = write(tmp_path / "own.jsonl", "\n".join(map(json.dumps, lines)))
    read = read_jsonl(path)
    assert [dialogue.id for dialogue in read.dialogues] == ["own-1", "7", "own-3"]
    assert [dialogue.ratings for dialogue in read.dialogues] == [(3, 4), (5,), ()]
    assert read.dropped_ratings == 1
    assert read.dialogues[0].meta == {"system": "a", "n": "2"}
    data = JSONLDialogues(path)
    assert (len(data.dialogues), len(data.rated)) == (3, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[1, 2]", "has no list of messages"),
        ('{"turns": [{"role": "system", "text": "Be kind"}]}', "and none of the assistant"),
        ('{"turns": [{"text": "Hi"}]}', "must have a role and a text"),
        ('{"turns": [{"role": "user", "text": "Hi"}], "ratings": [0]}', r"the rating 0 is not in \[1, 5\]"),
        ('{"turns": [{"role": "user", "text": "Hi"}], "ratings": [true]}', "True is no rating"),
        ('{"turns": [{"role": "user", "text": "Hi"}], "id": "own-1"}', "2 dialogues have the id 'own-1'"),
        ('{"turns": []}', "so nothing to rate"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    good = '{"turns": [{"role": "user", "text": "Hi"}], "ratings": [3]}'
    with pytest.raises(ValueError, match=message):
        JSONLDialogues(write(tmp_path / "own.jsonl", f"{good}\n{line}\n"))
