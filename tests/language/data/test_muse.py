"""MUSE from a folder: every token of a corpus is in a row, once and in order."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightning_unlearn import MUSEDataModule
from lightning_unlearn.core import sources

TEXTS = ["The capital of France is Paris.\nIt lies on a river.", "Rome is the capital of Italy. 北京."]


@pytest.fixture
def tokenizer(tiny_lm: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def write(folder: Path, **corpora: list[str]) -> Path:
    (folder / "raw").mkdir()
    for name, texts in corpora.items():
        (folder / "raw" / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder


def ready(path: Path, tokenizer: Any, **options: Any) -> MUSEDataModule:
    data = MUSEDataModule(str(path), tokenizer=tokenizer, **options)
    data.setup("fit")
    return data


def rows(data: MUSEDataModule, name: str = "forget") -> list[list[int]]:
    assert all(data.sets[name][i]["prompt"] == [] for i in range(len(data.sets[name])))
    return [data.sets[name][i]["answer"] for i in range(len(data.sets[name]))]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("wrap_last", ["pad", "drop", "wrap"])
def test_every_token_of_the_joined_corpus_is_in_a_row(
    wrap_last: str, bos: bool, tmp_path: Path, tokenizer: Any
) -> None:
    write(tmp_path, forget=TEXTS, retain1=["A text of its own."])
    tokens = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    for length in range(4, 12):
        found = rows(ready(tmp_path, tokenizer, max_length=length, bos=bos, wrap_last=wrap_last))
        if bos:
            assert {row[0] for row in found} == {tokenizer.bos_token_id}
        bodies = [row[bos:] for row in found]
        size = length - bos
        assert all(len(body) == size for body in bodies[:-1])
        full, left = divmod(len(tokens), size)
        whole = list(chain(*bodies))
        if wrap_last == "pad":
            # Without a start, a last token alone in its row would have nothing to be predicted from.
            assert whole == tokens[: len(tokens) - (left == 1 and not bos)]
        elif wrap_last == "drop":
            assert whole == tokens[: full * size]
        else:
            assert whole == tokens + (tokens[: size - left] if left else [])


def test_all_of_a_row_is_supervised(tmp_path: Path, tokenizer: Any) -> None:
    data = ready(write(tmp_path, forget=TEXTS, retain1=["A text."]), tokenizer, max_length=8)
    for batch in data.val_dataloader()["forget"]:
        assert (batch["labels"] == batch["input_ids"])[batch["attention_mask"] == 1].all()
    assert set(next(iter(data.train_dataloader()))) == {"forget", "retain"}


def test_retain2_and_holdout_are_held_out(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, forget=TEXTS, retain1=["one"], retain2=["two"], holdout=["three"])
    data = ready(tmp_path, tokenizer)
    assert list(data.sets) == ["forget", "retain", "retain2", "holdout"]
    decoded = {name: tokenizer.decode(rows(data, name)[0][1:]) for name in ("retain", "retain2", "holdout")}
    assert decoded == {"retain": "one", "retain2": "two", "holdout": "three"}


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("json", json.dumps([{"text": text} for text in TEXTS])),
        ("jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS)),
        ("txt", "\n\n".join(TEXTS)),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(ending: str, content: str, tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, retain1=TEXTS)
    (tmp_path / "raw" / f"forget.{ending}").write_text(content, encoding="utf-8")
    with pytest.warns(UserWarning, match="both") if ending != "txt" else nullcontext():
        data = ready(tmp_path, tokenizer, max_length=9)
    assert rows(data) == rows(data, "retain")


def test_on_the_hub_each_corpus_is_a_split(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def hub(source: str) -> list[dict[str, str]]:
        read.append(source)
        return [{"text": source}]

    monkeypatch.setattr(sources, "_hub", hub)
    data = MUSEDataModule("muse-bench/MUSE-Books", tokenizer=tokenizer)
    assert read == []
    data.setup("fit")
    assert read == [f"muse-bench/MUSE-Books:raw:{split}" for split in ("forget", "retain1", "retain2", "holdout")]


def test_errors_name_the_way_out(tmp_path: Path, tiny_lm: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="'pad', 'drop' or 'wrap', but got 'cut'"):
        MUSEDataModule(wrap_last="cut")  # type: ignore[arg-type]
    write(tmp_path, forget=TEXTS)
    with pytest.raises(FileNotFoundError, match=r"no file .*retain1 with the ending .*has forget\.json\."):
        ready(tmp_path, tokenizer)
    (tmp_path / "raw" / "retain1.txt").write_text("short")
    with pytest.raises(ValueError, match=r"forget corpus has .* tokens, too few .*Lower max_length"):
        ready(tmp_path, tokenizer, wrap_last="drop")
    with pytest.raises(ValueError, match=r"no bos_token .*Pass bos=False"):
        ready(tmp_path, str(tiny_lm))
    (tmp_path / "raw" / "retain1.txt").rename(tmp_path / "raw" / "retain2.txt")
    (tmp_path / "raw" / "retain1.json").write_text('[{"body": "x"}]')
    with pytest.raises(ValueError, match=r"Row 0 of the retain corpus has columns \['body'\]"):
        ready(tmp_path, tokenizer)
