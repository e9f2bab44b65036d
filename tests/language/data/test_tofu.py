"""TOFU from a folder: which file is which set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import LitCausalLM, PromptFormat, SimNPO, TOFUDataModule
from lightning_unlearn.core import sources
from tests.user_module import trainer


def write(folder: Path, **sizes: int) -> Path:
    for name, size in sizes.items():
        rows = [{"question": f"Who is {name} {i}?", "answer": f"It is {i} of {name}."} for i in range(size)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.json").write_text(lines, encoding="utf-8")
    return folder


def ready(path: Path, tiny_lm: Path, **options: Any) -> TOFUDataModule:
    data = TOFUDataModule(str(path), prompt=PromptFormat(str(tiny_lm)), **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("split", "retain"), [("forget01", "retain99"), ("forget05", "retain95"), ("forget10", "retain90")]
)
def test_what_is_not_forgotten_is_retained(split: str, retain: str, tmp_path: Path, tiny_lm: Path) -> None:
    write(tmp_path, forget01=1, forget05=2, forget10=3, retain99=9, retain95=8, retain90=7)
    data = ready(tmp_path, tiny_lm, split=split)
    assert list(data.sets) == ["forget", "retain"]
    for role, name in (("forget", split), ("retain", retain)):
        assert {row["question"].split()[2] for row in data.questions[role]} == {name}
    assert len(data.sets["forget"]) == {"forget01": 1, "forget05": 2, "forget10": 3}[split]


@pytest.mark.parametrize(("split", "retain"), [("forget20", "retain80"), ("forget90", "retain10")])
def test_the_retain_split_of_other_sizes_follows_from_the_name(
    split: str, retain: str, tmp_path: Path, tiny_lm: Path
) -> None:
    data = ready(write(tmp_path, **{split: 2, retain: 4}), tiny_lm, split=split)
    assert [len(rows) for rows in data.sets.values()] == [2, 4]


def test_heldout_sets_are_the_perturbed_files_or_else_the_plain_ones(tmp_path: Path, tiny_lm: Path) -> None:
    write(tmp_path, forget10=2, retain90=4, real_authors=3, real_authors_perturbed=5, world_facts=6)
    data = ready(tmp_path, tiny_lm)
    assert {name: len(rows) for name, rows in data.sets.items()} == {
        "forget": 2,
        "retain": 4,
        "real_authors": 5,
        "world_facts": 6,
    }
    assert list(data.val_dataloader()) == ["forget", "retain", "real_authors", "world_facts"]


def test_a_missing_file_is_named_together_with_the_splits_that_are_there(tmp_path: Path, tiny_lm: Path) -> None:
    write(tmp_path, forget05=1, retain95=1, forget10=1, forget10_perturbed=1)
    with pytest.raises(FileNotFoundError, match=r"no file .*retain90\.json.*has forget05, forget10, retain95\.$"):
        ready(tmp_path, tiny_lm)
    with pytest.raises(FileNotFoundError, match=r"no file .*forget20\.json, which split='forget20' needs"):
        ready(tmp_path, tiny_lm, split="forget20")


@pytest.mark.parametrize("split", ["retain90", "forget", "forget00", "forget100", "forget10_perturbed", ""])
def test_an_unknown_split_is_an_error_that_names_the_known_ones(split: str) -> None:
    with pytest.raises(ValueError, match=f"no split '{split}' to forget. Use 'forget01', 'forget05' or 'forget10'"):
        TOFUDataModule(split=split)


def test_on_the_hub_each_split_is_a_config(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def hub(source: str) -> list[dict[str, str]]:
        read.append(source)
        return [{"question": f"{source}?", "answer": "Yes."}]

    monkeypatch.setattr(sources, "_hub", hub)
    data = TOFUDataModule(split="forget05", prompt=PromptFormat(str(tiny_lm)))
    assert read == []  # nothing is read before setup
    data.setup("fit")
    configs = ("forget05", "retain95", "real_authors_perturbed", "world_facts_perturbed")
    assert read == [f"locuslab/TOFU:{config}:train" for config in configs]
    data.setup("validate")
    assert len(read) == 4


def test_a_model_trains_on_it_and_is_validated_on_every_set(tmp_path: Path, tiny_lm: Path) -> None:
    write(tmp_path, forget10=4, retain90=6, real_authors_perturbed=2, world_facts_perturbed=2)
    data = TOFUDataModule(str(tmp_path), batch_size=2)
    run = trainer(SimNPO(), max_epochs=1)
    run.fit(LitCausalLM(str(tiny_lm)), data)
    assert run.global_step == 2
    assert {"val/forget_nll", "val/retain_nll", "val/real_authors_nll", "val/world_facts_nll"} <= set(
        run.callback_metrics
    )
