"""Prompts as rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_unlearn import PromptDataModule
from tests.diffusion.tiny import LENGTH, write_tokenizer


@pytest.fixture
def words(tmp_path: Path) -> str:
    write_tokenizer(tmp_path / "words")
    return str(tmp_path / "words")


def test_a_batch_has_prompts_with_anchors_and_prompts_to_keep(words: str) -> None:
    forget = ["van gogh", {"prompt": "red", "anchor": "green"}]
    data = PromptDataModule(forget, ["a photo"], anchor="art", tokenizer=words, batch_size=2, retain_batch_size=1)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert set(batch) == {"forget", "retain"}
    assert {name: tuple(v.shape) for name, v in batch["forget"].items()} == {
        "input_ids": (2, LENGTH),
        "attention_mask": (2, LENGTH),
        "anchor_input_ids": (2, LENGTH),
        "anchor_attention_mask": (2, LENGTH),
        "index": (2,),
    }
    lengths = dict(
        zip(batch["forget"]["index"].tolist(), batch["forget"]["attention_mask"].sum(1).tolist(), strict=True)
    )
    assert lengths == {0: 4, 1: 3}
    assert batch["forget"]["anchor_attention_mask"].sum(1).tolist() == [3, 3]
    assert "anchor_input_ids" not in batch["retain"]


def test_an_epoch_may_pass_over_few_prompts_many_times(words: str) -> None:
    data = PromptDataModule(["van gogh"], tokenizer=words, repeat=5)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 5
    assert [batch["forget"]["index"].tolist() for batch in loader] == [[0]] * 5


def test_prompts_come_from_a_file(words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,anchor\nvan gogh,art\n")
    data = PromptDataModule(str(tmp_path / "p.csv"), tokenizer=words)
    data.setup("fit")
    assert data.sets["forget"].anchors == ["art"]


def test_what_is_no_list_of_prompts_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"One prompt is a list of one: \['Van Gogh'\]"):
        PromptDataModule("Van Gogh", tokenizer=words).setup("fit")
    with pytest.raises(ValueError, match="no text under 'prompt'"):
        PromptDataModule([{"text": "red"}], tokenizer=words).setup("fit")
    with pytest.raises(ValueError, match="is empty"):
        PromptDataModule([], tokenizer=words).setup("fit")
    with pytest.raises(ValueError, match="has no tokenizer, and the module no attribute"):
        PromptDataModule(["red"]).setup("fit")
    with pytest.raises(ValueError, match="repeat must be at least 1"):
        PromptDataModule(["red"], repeat=0)
