"""Other answers: as rows that follow the forget rows, and as a model writes them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import AltPO, LanguageDataModule, LitCausalLM, PromptFormat
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.language.alternates import generate_alternates
from tests.user_module import trainer

Rows = list[dict[str, Any]]


@pytest.fixture
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(str(tiny_lm))


def ready(rows: Any, module: LitCausalLM, **options: Any) -> LanguageDataModule:
    data = LanguageDataModule(rows, prompt=PromptFormat(module.tokenizer), **options)
    data.setup("fit")
    return data


def with_alternates(rows: Rows) -> Rows:
    return [{**row, "alternate": [f"City {i}{k}." for k in range(i + 1)]} for i, row in enumerate(rows)]


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["idk", "alternate"])
def test_every_pair_of_a_row_and_an_answer_has_its_own_index(role: str, module: LitCausalLM, forget_rows: Rows) -> None:
    data = ready(with_alternates(forget_rows), module, batch_size=3, refusals=["No.", "Pass.", "Who knows?"])
    follower, loader = data.followers[role], data.train_dataloader()
    assert len(follower) == (4 * 3 if role == "idk" else 1 + 2 + 3 + 4)
    assert [follower[i]["index"] for i in range(len(follower))] == list(range(len(follower)))
    assert len({(tuple(row["prompt"]), tuple(row["answer"])) for row in follower}) == len(follower)
    for row in range(4):
        for epoch in range(8):
            drawn = follower[row, epoch]
            assert follower[drawn["index"]] == drawn
            assert role != "idk" or drawn["index"] // 3 == row
    in_order = row_loader(loader, role)
    assert in_order is not None
    assert torch.cat([batch["index"] for batch in in_order]).tolist() == list(range(len(follower)))
    with pytest.raises(IndexError):
        follower[len(follower)]


def test_a_follower_without_a_length_has_no_row_loader(module: LitCausalLM, forget_rows: Rows) -> None:
    class Endless:
        def __getitem__(self, key: tuple[int, int]) -> Any: ...

    data = ready(forget_rows, module)
    data.followers = {"idk": Endless()}
    assert row_loader(data.train_dataloader(), "idk") is None


def test_each_alternate_comes_once_before_one_comes_again(module: LitCausalLM, forget_rows: Rows) -> None:
    follower = ready(with_alternates(forget_rows), module, seed=3).followers["alternate"]
    again = ready(with_alternates(forget_rows), module, seed=3).followers["alternate"]
    for row in range(4):
        drawn = [follower[row, epoch]["index"] for epoch in range(3 * (row + 1))]
        assert set(Counter(drawn).values()) == {3}
        torch.manual_seed(row)
        assert drawn == [again[row, epoch]["index"] for epoch in range(len(drawn))]


def test_an_alternate_is_a_whole_answer_with_an_end(module: LitCausalLM) -> None:
    row = {"question": "Where?", "answer": "It is in Paris.", "target": "Paris", "alternate": "It is in Rome."}
    data = ready([row], module)
    found = data.followers["alternate"][0, 0]
    text = module.tokenizer.decode(found["prompt"] + found["answer"])
    assert text == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nIt is in Rome.<|im_end|>"
    assert module.tokenizer.decode(found["answer"]) == "It is in Rome.<|im_end|>"


def test_rows_without_alternates_make_no_such_role(module: LitCausalLM, forget_rows: Rows) -> None:
    assert set(ready(forget_rows, module).followers) == {"idk"}


@pytest.mark.parametrize("bad", [None, [], [" "], ["It is Rome.", 3]])
def test_a_row_without_alternates_among_others_is_an_error(bad: Any, module: LitCausalLM, forget_rows: Rows) -> None:
    rows = with_alternates(forget_rows)
    rows[2]["alternate"] = bad
    with pytest.raises(ValueError, match=r"Row 2 of the forget set has .* in 'alternate'.*generate_alternates"):
        ready(rows, module)


# ---- the generator ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"count": 3, "max_new_tokens": 6, "seed": 5}


def test_generated_alternates_are_what_altpo_trains_on(
    module: LitCausalLM, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "alternates.jsonl"
    rows = generate_alternates(module, forget_rows, path, **OPTIONS)
    assert [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]] == rows
    for row, given in zip(rows, forget_rows, strict=True):
        assert {**row, "alternate": None} == {**given, "alternate": None}
        assert len(set(row["alternate"])) == 3
        assert all(text.strip() and text != given["answer"] for text in row["alternate"])
    run = trainer(AltPO(), max_steps=2, limit_val_batches=0)
    run.fit(module, LanguageDataModule(path, retain_rows, batch_size=2))
    assert run.global_step == 2


def test_an_interrupted_run_goes_on_and_ends_with_the_same_file(
    module: LitCausalLM, forget_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate_alternates(module, forget_rows, tmp_path / "whole.jsonl", **OPTIONS)
    content = (tmp_path / "whole.jsonl").read_bytes()

    lines = content.splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while it wrote
    asked: list[int] = []
    generate = module.model.generate
    monkeypatch.setattr(module.model, "generate", lambda **kwargs: asked.append(1) or generate(**kwargs))
    torch.manual_seed(77)
    state = torch.get_rng_state()
    assert generate_alternates(module, forget_rows, tmp_path / "part.jsonl", **OPTIONS) == whole
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "part.jsonl").read_bytes() == content
    assert len(asked) >= 2

    asked.clear()
    assert generate_alternates(module, forget_rows, tmp_path / "part.jsonl", **OPTIONS) == whole
    assert not asked


def test_the_seed_and_the_temperature_matter(module: LitCausalLM, forget_rows: Rows, tmp_path: Path) -> None:
    def made(name: str, **options: Any) -> Any:
        return generate_alternates(module, forget_rows[:1], tmp_path / f"{name}.jsonl", **(OPTIONS | options))

    first = made("first")
    assert made("again") == first
    assert made("seed", seed=6) != first
    assert made("cold", temperature=0.05) != first


def test_a_model_with_nothing_else_to_say_is_an_error(
    module: LitCausalLM, forget_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = module.tokenizer.eos_token_id
    monkeypatch.setattr(
        module.model, "generate", lambda input_ids, **_: torch.cat([input_ids, torch.full((1, 3), ends)], 1)
    )
    with pytest.raises(RuntimeError, match=r"no other answer to row 0, '.*France\?', in 12 samples"):
        generate_alternates(module, forget_rows, tmp_path / "none.jsonl", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, but got 0"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"path": "alternates.csv"}, r"path must end with \.jsonl"),
        ({"instruction": "Say {question} differently."}, r"instruction must contain \{answer\}"),
        ({"rows": [{"text": "Plain."}]}, "Row 0 has columns"),
    ],
)
def test_arguments_are_checked(
    options: dict[str, Any], message: str, module: LitCausalLM, forget_rows: Rows, tmp_path: Path
) -> None:
    given = {"rows": forget_rows, "path": tmp_path / "a.jsonl"} | options
    with pytest.raises(ValueError, match=message):
        generate_alternates(module, **given)
