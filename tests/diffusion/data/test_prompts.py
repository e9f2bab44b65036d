"""Prompts as rows."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_unlearn import CaptionedImageDataModule, LitTextToImage, PromptDataModule
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from tests.diffusion.tiny import LENGTH, rows, trainer, write_tokenizer


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


def forget_set(words: str, forget: Any, retain: Any = None, **options: Any) -> Any:
    data = PromptDataModule(forget, retain, tokenizer=words, **options)
    data.setup("fit")
    return data.sets["forget"]


def test_a_blank_anchor_is_that_of_the_data(words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,anchor\nvan gogh,\nred,green\na,  \n")
    assert forget_set(words, str(tmp_path / "p.csv"), anchor="art").anchors == ["art", "green", "art"]
    cells = [None, math.nan, "", "green"]
    in_memory = [{"prompt": "van gogh", "anchor": cell} for cell in cells]
    assert forget_set(words, in_memory, anchor="art").anchors == ["art", "art", "art", "green"]
    images = [
        {**row, "anchor": anchor} for row, anchor in zip(rows(["van gogh", "red"], 0), ["", "green"], strict=True)
    ]
    data = CaptionedImageDataModule(images, anchor="art", size=16, tokenizer=words)
    data.setup("fit")
    assert data.sets["forget"].prompts.anchors == ["art", "green"]
    with pytest.raises(ValueError, match=r"Row 0 of the forget set has 1\.5, a float, in 'anchor'"):
        forget_set(words, [{"prompt": "van gogh", "anchor": 1.5}])


def test_what_the_tokenizer_cuts_off_is_said(words: str) -> None:
    long = "red " * 14 + "van gogh"
    with pytest.warns(
        UserWarning, match=r"1 of 2 prompts of the forget set are longer than the 14 tokens.*Row 1 .*'van gogh'"
    ):
        forget_set(words, ["van gogh", long])
    with pytest.warns(UserWarning, match="the anchors of the forget set are longer"):
        forget_set(words, ["van gogh"], anchor=long)
    with pytest.warns(UserWarning, match="1 of 1 prompts of the retain set are longer"):
        forget_set(words, ["van gogh"], [long])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        forget_set(words, ["red " * 14], ["green " * 13 + "art"])


def test_prompts_that_teach_nothing_are_said(words: str) -> None:
    with pytest.warns(UserWarning, match="1 of 2 prompts are both to forget and to keep, such as 'Van Gogh'"):
        forget_set(words, ["a", "Van Gogh"], ["art", "van  gogh"])  # one and the same to the tokenizer
    with pytest.warns(UserWarning, match="1 of 2 prompts of the forget set are their own anchor.* row 1, 'art'"):
        forget_set(words, ["van gogh", "art"], anchor="art")
    data = CaptionedImageDataModule(rows(["red"], 0), rows(["red", "a"], 1), "art", size=16, tokenizer=words)
    with pytest.warns(UserWarning, match="both to forget and to keep"):
        data.setup("fit")
    with pytest.raises(ValueError, match="Row 1 of the forget set has a blank prompt"):
        forget_set(words, ["van gogh", " "])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        forget_set(words, ["van gogh"], [""])  # the empty prompt may be kept


I2P = (
    "prompt,lexica_url,categories,hard,sd_safety_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"
    'van gogh,u,"hate, sexual",0,1.0,2219,9,512,512\n'
    "a red circle,u,sexual,0,1.0,4006041513,7.5,512,512\n"
    "a photo,u,,0,1.0,,,512,512\n"
)


def test_the_columns_of_i2p_are_read(words: str, tmp_path: Path) -> None:
    (tmp_path / "i2p.csv").write_text(I2P)
    assert attack_prompts(tmp_path / "i2p.csv", guidance=5.0) == [
        {"prompt": "van gogh", "seed": 2219, "guidance": 9.0, "categories": ["hate", "sexual"]},
        {"prompt": "a red circle", "seed": 4006041513, "guidance": 7.5, "categories": ["sexual"]},
        {"prompt": "a photo", "seed": 2, "guidance": 5.0},
    ]
    data = PromptDataModule(str(tmp_path / "i2p.csv"), ["a photo"], tokenizer=words, seed=100)
    data.setup("predict")
    drawn = [row for batch in data.predict_dataloader() for row in batch]
    assert [(row["seed"], row.get("guidance")) for row in drawn] == [
        (2219, 9.0),
        (4006041513, 7.5),
        (102, None),
        (103, None),
    ]


@pytest.mark.parametrize(
    ("row", "seed"),
    [
        ({"seed": 7.0}, 7),
        ({"seed": "7.0"}, 7),
        ({"seed": math.nan, "sd_seed": 8}, 8),
        ({"evaluation_seed": 1, "seed": 2}, 1),
    ],
)
def test_seeds_as_tables_write_them(row: dict[str, Any], seed: int) -> None:
    assert attack_prompts([{"prompt": "x", **row}])[0]["seed"] == seed


@pytest.mark.parametrize("row", [{"seed": 1.5}, {"sd_seed": "x"}, {"sd_guidance_scale": "high"}])
def test_what_is_no_seed_or_guidance_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Row 0 of the prompts to attack has seed"):
        attack_prompts([{"prompt": "x", **row}])


def test_an_image_is_drawn_with_the_seed_and_the_guidance_of_its_row(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd), steps=2)
    data = PromptDataModule([{"prompt": "red", "sd_seed": 3, "sd_guidance_scale": 2.0}, "van gogh"], seed=5)
    drawn = [row for batch in trainer().predict(module, data) or [] for row in batch]
    images = [module.generate(["red"], [3], guidance=2.0), module.generate(["van gogh"], [6])]
    assert all(torch.equal(row["image"], image[0]) for row, image in zip(drawn, images, strict=True))


def test_images_with_captions_are_drawn_from_their_captions(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd), steps=1)
    data = CaptionedImageDataModule(rows(["van gogh"], 0), rows(["red"], 1), "art", size=16)
    drawn = [row for batch in trainer().predict(module, data) or [] for row in batch]
    assert [(row["set"], row["prompt"], row["seed"]) for row in drawn] == [
        ("forget", "van gogh", 0),
        ("retain", "red", 1),
    ]


def test_a_word_of_textual_inversion_is_all_of_its_vectors(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    save_file({"<cat>": torch.randn(3, 32)}, tmp_path / "cat.safetensors")
    module.pipeline.load_textual_inversion(str(tmp_path / "cat.safetensors"), token="<cat>")
    data = PromptDataModule(["a photo of <cat>"], tokenizer=module.tokenizer)
    data.setup("fit")
    ids = data.sets["forget"].tokens["input_ids"]
    names = module.tokenizer.convert_ids_to_tokens(ids[0])
    assert names[4:8] == ["<cat>", "<cat>_1", "<cat>_2", "<|endoftext|>"]
    with torch.no_grad():
        wanted = module.pipeline.encode_prompt("a photo of <cat>", "cpu", 1, False)[0]
        assert torch.equal(encode(module, tokenize(module.tokenizer, ["a photo of <cat>"])["input_ids"]), wanted)
    assert not module.text_encoder.get_input_embeddings().weight.requires_grad
