"""WMDP corpora: the text of each object, and not the line of the file that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightning_unlearn import WMDPDataModule
from lightning_unlearn.core import sources

FORGET = ['He wrote "hello",\nthen a\ttab.', "Hm.", "The capital of France is Paris, and so on and so forth."]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def ready(folder: Path, tiny_lm: Path, **options: Any) -> WMDPDataModule:
    forget = write(folder / "forget.jsonl", [{"text": text, "title": "x"} for text in FORGET])
    retain = write(folder / "retain.jsonl", [{"text": ""}, {"text": None}, {"text": "Something harmless to keep."}])
    data = WMDPDataModule(forget, retain, tokenizer=str(tiny_lm), **options)
    data.setup("fit")
    return data


def test_a_row_is_the_text_of_an_object_and_short_texts_are_left_out(tmp_path: Path, tiny_lm: Path) -> None:
    data = ready(tmp_path, tiny_lm, min_length=10)
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    texts = {n: [tokenizer.decode(rows[i]["answer"]) for i in range(len(rows))] for n, rows in data.sets.items()}
    assert texts == {"forget": [FORGET[0], FORGET[2]], "retain": ["Something harmless to keep."]}
    assert set(next(iter(data.train_dataloader()))) == {"forget", "retain"}


def test_a_text_of_exactly_min_length_stays(tmp_path: Path, tiny_lm: Path) -> None:
    assert len(ready(tmp_path, tiny_lm, min_length=3).sets["forget"]) == 3
    assert len(ready(tmp_path, tiny_lm, min_length=4).sets["forget"]) == 2


def test_a_long_text_is_cut_and_none_of_it_is_dropped(tmp_path: Path, tiny_lm: Path) -> None:
    rows = ready(tmp_path, tiny_lm, min_length=10, max_length=8).sets["forget"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    expected = sum(len(tokenizer(text)["input_ids"]) - 1 for text in (FORGET[0], FORGET[2]))
    assert max(rows.lengths) == 8
    assert sum(rows.lengths - 1) == expected


def test_the_default_is_the_cyber_corpus_of_the_hub(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def hub(source: str) -> list[dict[str, str]]:
        read.append(source)
        return [{"text": source * 2}]

    monkeypatch.setattr(sources, "_hub", hub)
    data = WMDPDataModule(tokenizer=str(tiny_lm))
    assert (read, data.max_length) == ([], 512)
    data.setup("fit")
    assert read == [f"cais/wmdp-corpora:cyber-{role}-corpus" for role in ("forget", "retain")]


def test_errors_name_the_way_out(tmp_path: Path, tiny_lm: Path) -> None:
    with pytest.raises(ValueError, match=r"min_length must be at least 1, but got 0"):
        WMDPDataModule(min_length=0)
    with pytest.raises(ValueError, match=r"None of the 3 texts of the forget corpus has 99 characters. Lower"):
        ready(tmp_path, tiny_lm, min_length=99)
    with pytest.raises(ValueError, match=r"Row 0 of the forget corpus has columns \['text', 'title'\].*text_key"):
        ready(tmp_path, tiny_lm, text_key="abstract")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.jsonl"):
        WMDPDataModule(str(tmp_path / "none.jsonl"), tokenizer=str(tiny_lm)).setup("fit")
