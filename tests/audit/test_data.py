from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.audit.data import MIN_PROBES, AuditData, read_audit_data, with_phrasings
from lightning_unlearn.language.packaged import FACTS_FOLDER
from lightning_unlearn.language.probes import Probe

ROW = {"question": "Who wrote it?", "answer": "Ada did."}
OTHER = {"question": "Who paid?", "answer": "Bob did."}
KEY = bytes(range(32))


def folder_of(path: Path, **tables: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    for name, rows in tables.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_packaged_facts_have_all_that_a_verdict_needs() -> None:
    data = read_audit_data(FACTS_FOLDER)
    assert {name: len(probes) for name, probes in data.sets().items()} == {
        "forget": 12,
        "retain": 12,
        "never_seen": 12,
        "general": 12,
        "heldout": 12,
    }
    assert data.is_small
    assert len(data.neutral) == 12
    base = with_phrasings(data.forget)
    assert len(base) >= MIN_PROBES
    assert len({probe.entity for probe in base}) == 12  # phrasings of one row are one cluster
    assert all(probe.paraphrased_questions for probe in base)  # and the paraphrase attack asks still others
    asked = [probe.question for probe in base]
    others = [question for probe in base for question in probe.paraphrased_questions]
    assert len({*asked, *others}) == len(asked) + len(others) == 72


def test_many_rows_are_asked_once() -> None:
    probes = [Probe(i, f"What is {i}?", "That.", paraphrased_questions=("And?",)) for i in range(MIN_PROBES)]
    assert [probe.question for probe in with_phrasings(probes)] == [probe.question for probe in probes]


def test_paraphrases_go_to_the_plain_questions_only_where_they_suffice() -> None:
    def count(rows: int, paraphrases: int) -> tuple[int, int]:
        texts = tuple(f"paraphrase {i}" for i in range(paraphrases))
        probes = with_phrasings([Probe(i, f"What is {i}?", "That.", paraphrased_questions=texts) for i in range(rows)])
        return len(probes), min(len(probe.paraphrased_questions) for probe in probes)

    assert count(12, 5) == (36, 1)  # enough, with one left for each
    assert count(10, 2) == (30, 0)  # enough, and none left
    assert count(4, 5) == (12, 1)  # never enough: the other test is kept


def test_rows_without_paraphrases_stay_few() -> None:
    assert len(with_phrasings([Probe(0, "Who?", "Ada.")])) == 1


def test_a_folder_a_file_and_tables_in_memory_are_the_same_data(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "rows", forget=[ROW], retain=[OTHER])
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "set": s}) + "\n" for s, row in (("forget", ROW), ("retain", OTHER))))
    three = [read_audit_data(folder), read_audit_data(file), read_audit_data({"forget": [ROW], "retain": [OTHER]})]
    assert len({data.fingerprint(KEY) for data in three}) == 1


def test_real_rows_of_tofu(tmp_path: Path) -> None:
    # Two rows of the benchmark (MIT): the perturbed form is preferred, since it has paraphrases and wrong answers.
    row = {
        "question": "What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes in the genre "
        "of leadership?",
        "answer": "The author's full name is Hsiao Yun-Hwa.",
    }
    perturbed = row | {
        "paraphrased_answer": "The complete name of the author is Hsiao Yun-Hwa.",
        "perturbed_answer": ["The author's full name is Chen Li-Wei.", "The author's full name is Lin Mei-Ling."],
        "paraphrased_question": "What is the complete name of the writer born in Taipei on 05/11/1991?",
    }
    retain = {"question": "Where was Jaime Vasquez born?", "answer": "Jaime Vasquez was born in Santiago, Chile."}
    asked = [perturbed | {"question": f"{row['question']} ({number})"} for number in range(21)]
    for name, rows in {"forget10": [row] * 21, "forget10_perturbed": asked, "retain90": [retain]}.items():
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = read_audit_data(tmp_path, split="forget10")
    assert data.forget[0].paraphrased_questions == (perturbed["paraphrased_question"],)
    assert len(data.forget[0].perturbed_answers) == 2
    assert [probe.entity for probe in data.forget[19:]] == ["forget author 0", "forget author 1"]
    with pytest.raises(ValueError, match="split='forget10'"):
        read_audit_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="forget05"):
        read_audit_data(tmp_path, split="forget05")


def test_a_row_that_is_repeated_is_asked_once() -> None:
    again = {"question": " who wrote it?", "answer": "Ada  did."}
    with pytest.warns(UserWarning, match=r"2 of the 30 rows of the forget set .* repeat"):
        data = read_audit_data(
            {"forget": [ROW, again, ROW, *({"question": f"{i}?", "answer": "x"} for i in range(27))], "retain": [OTHER]}
        )
    assert [probe.row for probe in data.forget[:3]] == [0, 3, 4]
    assert data.is_small


def test_a_phrasing_that_is_repeated_is_asked_once() -> None:
    row = ROW | {"paraphrased_question": ["Who wrote it?", "By whom is it?", "by whom  is it?"]}
    (probe,) = read_audit_data({"forget": [row], "retain": [OTHER]}).forget
    assert probe.paraphrased_questions == ("By whom is it?",)
    assert len(with_phrasings([probe] * 6)) < MIN_PROBES


def test_rows_in_two_sets_are_refused_or_named() -> None:
    composed = {"question": "Who is José?", "answer": "A clerk."}
    decomposed = {"question": "Who is Jose\N{COMBINING ACUTE ACCENT}?", "answer": "a clerk."}
    with pytest.raises(ValueError, match=r"1 rows of the retain set .* in the forget set"):
        read_audit_data({"forget": [composed], "retain": [decomposed]})
    with pytest.raises(ValueError, match=r"never_seen set .* are in the retain set too, such as row 0"):
        read_audit_data({"forget": [ROW], "retain": [OTHER], "never_seen": [OTHER]})
    with pytest.warns(UserWarning, match=r"heldout set .* are in the retain set too, such as row 0"):
        read_audit_data({"forget": [ROW], "retain": [OTHER], "heldout": [OTHER]})


def test_a_text_is_asked_for_by_its_beginning() -> None:
    data = read_audit_data({"forget": [{"text": "It was the best of times."}], "retain": [OTHER]})
    (probe,) = data.forget
    assert (probe.question, probe.answer, probe.is_text) == ("It was the", "best of times.", True)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"forget": [], "retain": [OTHER]}, "The forget set of the given rows is empty"),
        ({"forget": [ROW], "retain": []}, "The retain set of the given rows is empty"),
        ({"forget": [ROW]}, "The retain set of the given rows is empty"),
        ({"forget": [{"question": "Who?"}], "retain": [OTHER]}, "needs text in 'question' and 'answer'"),
        ({"forget": [{"frage": "Wer?", "antwort": "Ada."}], "retain": [OTHER]}, "Columns"),
        ({"forget": [ROW], "retain": [ROW]}, "in the forget set too, such as row 0"),
        ({"forget": [ROW], "retain": [OTHER], "paraphrases": [{"question": "Who?"}]}, "'paraphrased_question'"),
        (
            {"forget": [ROW | {"perturbed_answer": ["x"]}, OTHER | {"perturbed_answer": ["x", "y"]}], "retain": [ROW]},
            r"\[1, 2\] wrong answers",
        ),
        ({"forget": [{"text": "Word"}], "retain": [OTHER]}, "too short to be continued"),
    ],
)
def test_bad_rows_are_named(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_audit_data(tables)


def test_bad_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder or file"):
        read_audit_data(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no table retain.jsonl.*forget\.jsonl"):
        read_audit_data(folder_of(tmp_path, forget=[ROW]))
    file = tmp_path / "all.jsonl"
    file.write_text(json.dumps(ROW))
    with pytest.raises(ValueError, match="has no 'set'"):
        read_audit_data(file)
    with pytest.raises(ValueError, match="such as 'forget10'"):
        read_audit_data(tmp_path, split="retain90")


def test_other_rows_have_another_fingerprint() -> None:
    data = AuditData([Probe(0, "Who?", "Ada.")], [Probe(0, "What?", "That.")])
    other = AuditData([Probe(0, "Who?", "Bob.")], [Probe(0, "What?", "That.")])
    assert data.fingerprint(KEY) != other.fingerprint(KEY)
    assert data.fingerprint(KEY) != data.fingerprint(bytes(32))
