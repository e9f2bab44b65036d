"""Images with captions as rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_unlearn.diffusion.data.captioned_images import CaptionedImageDataModule
from lightning_unlearn.diffusion.data.miniature import MiniCanvas
from tests.diffusion.tiny import LENGTH, write_tokenizer

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def words(tmp_path: Path) -> str:
    write_tokenizer(tmp_path / "words")
    return str(tmp_path / "words")


def write(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def prompts(data: CaptionedImageDataModule, name: str = "forget") -> tuple[list[str], list[str] | None]:
    data.setup("fit")
    return data.sets[name].prompts.prompts, data.sets[name].prompts.anchors


def test_a_batch_has_images_captions_and_anchors(words: str) -> None:
    rows = MiniCanvas(2, styles=["sketch"], objects=["disk"], size=16)
    data = CaptionedImageDataModule(rows, MiniCanvas(1, size=16), "art", size=16, tokenizer=words, batch_size=2)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    shapes = {name: tuple(value.shape) for name, value in batch["forget"].items()}
    tokens = dict.fromkeys(("input_ids", "attention_mask", "anchor_input_ids", "anchor_attention_mask"), (2, LENGTH))
    assert shapes == {"pixel_values": (2, 3, 16, 16), **tokens, "index": (2,)}
    assert set(batch["retain"]) == {"pixel_values", "input_ids", "attention_mask", "index"}
    for pixels, index in zip(batch["forget"]["pixel_values"], batch["forget"]["index"].tolist(), strict=True):
        assert torch.equal(pixels, rows[index]["image"] * 2 - 1)  # not through 8 bits
    assert prompts(data) == ([row["caption"] for row in rows], ["art", "art"])


def test_a_table_gives_captions_and_anchors(words: str, tmp_path: Path) -> None:
    write(tmp_path / "set" / "sub" / "a.png", BLUE)
    write(tmp_path / "set" / "b.png")
    rows = [{"file_name": "sub/a.png", "text": "van gogh"}, {"file_name": "b.png", "caption": "red", "anchor": "green"}]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source in ("set", "set/metadata.jsonl"):
        data = CaptionedImageDataModule(str(tmp_path / source), anchor="art", size=8, tokenizer=words)
        assert prompts(data) == (["van gogh", "red"], ["art", "green"])
        blue, red = (data.sets["forget"][i]["pixel_values"].mean((1, 2)).tolist() for i in range(2))
        assert blue == [-1, -1, 1]
        assert red == [1, -1, -1]


def test_folders_are_classes_and_a_template_captions_them(words: str, tmp_path: Path) -> None:
    for name in ("van_gogh/1.png", "van_gogh/deep/2.jpg", "cubism/3.png"):
        write(tmp_path / "all" / name)
    whole = CaptionedImageDataModule(str(tmp_path / "all"), caption="art in {} style", size=8, tokenizer=words)
    assert prompts(whole)[0] == ["art in cubism style", "art in van gogh style", "art in van gogh style"]
    one = CaptionedImageDataModule(str(tmp_path / "all" / "cubism"), size=8, tokenizer=words)
    assert prompts(one)[0] == ["a photo of a cubism"]


def test_replacements_keep_the_rest_of_the_caption(words: str) -> None:
    rows = [
        {"image": torch.zeros(3, 8, 8), "caption": caption}
        for caption in ("A circle in the style of Van Gogh", "gogh", "van gogh, vangogh")
    ]
    data = CaptionedImageDataModule(rows, anchor={"gogh": "x", "van gogh": "art"}, size=8, tokenizer=words)
    assert prompts(data)[1] == ["A circle in the style of art", "x", "art, vangogh"]
    rows.append({"image": torch.zeros(3, 8, 8), "caption": "vangogh"})
    data = CaptionedImageDataModule(rows, anchor={"van gogh": "art"}, size=8, tokenizer=words)
    with pytest.raises(ValueError, match=r"Row 1 .* 'gogh', in which nothing is replaced"):
        data.setup("fit")


def test_images_of_an_anchor_are_captioned_as_the_concept(words: str) -> None:
    rows = [
        {"image": torch.zeros(3, 8, 8), "caption": "a photo of a cat"},
        {"image": torch.zeros(3, 8, 8), "caption": "tom", "anchor": "cat"},
    ]
    for concept, made in (({"cat": "grumpy cat"}, "a photo of a grumpy cat"), ("{} in red", "a photo of a cat in red")):
        data = CaptionedImageDataModule(rows, concept=concept, size=8, tokenizer=words)
        assert prompts(data) == ([made, "tom"], ["a photo of a cat", "cat"])


def test_other_sizes_are_resized_and_cut_in_the_middle(words: str, tmp_path: Path) -> None:
    wide = Image.new("RGB", (64, 16), BLUE)
    wide.paste(RED, (24, 0, 40, 16))  # the middle square
    wide.save(tmp_path / "wide.png")
    tensor = torch.zeros(3, 16, 64)
    tensor[2], tensor[:, :, 24:40] = 1, torch.tensor([1.0, 0, 0])[:, None, None]
    rows: list[dict[str, Any]] = [
        {"image": image, "caption": "red"} for image in (tmp_path / "wide.png", wide.convert("RGBA"), tensor)
    ]
    data = CaptionedImageDataModule(rows, size=8, tokenizer=words)
    data.setup("fit")
    first, second, third = (data.sets["forget"][i]["pixel_values"] for i in range(3))
    assert first.shape == (3, 8, 8)
    assert torch.equal(first[:, :, 3:5].mean((1, 2)), torch.tensor([1.0, -1, -1]))
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_masks_are_cut_with_their_images(words: str, tmp_path: Path) -> None:
    wide = Image.new("L", (64, 16), 0)
    wide.paste(255, (24, 0, 32, 16))  # left half of the middle square
    write(tmp_path / "set" / "a.png", size=(64, 16))
    wide.save(tmp_path / "set" / "where.png")
    table = {"file_name": "a.png", "text": "red", "mask": "where.png"}
    (tmp_path / "set" / "metadata.jsonl").write_text(json.dumps(table))
    tensor = torch.zeros(1, 16, 64)
    tensor[:, :, 24:32] = 1
    in_memory = [{"image": torch.zeros(3, 8, 8), "caption": "red", "mask": mask} for mask in (wide, tensor)]
    halves = torch.tensor([1.0] * 4 + [0.0] * 4).expand(1, 8, 8)
    for source, count in ((str(tmp_path / "set"), 1), (in_memory, 2)):
        data = CaptionedImageDataModule(source, size=8, tokenizer=words, batch_size=2)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        assert torch.equal(batch["forget"]["mask"], halves.expand(count, 1, 8, 8))
    some = [in_memory[0], {"image": torch.zeros(3, 8, 8), "caption": "red"}]
    with pytest.raises(ValueError, match="Row 1 of the forget set has no 'mask'"):
        CaptionedImageDataModule(some, size=8, tokenizer=words).setup("fit")
    (tmp_path / "set" / "metadata.jsonl").write_text(json.dumps({**table, "mask": "none.png"}))
    with pytest.raises(FileNotFoundError, match=r"such as .*none.png"):
        CaptionedImageDataModule(str(tmp_path / "set"), size=8, tokenizer=words).setup("fit")
    data = CaptionedImageDataModule([in_memory[0] | {"mask": torch.zeros(8, 8)}], size=8, tokenizer=words)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"A mask is numbers in \[0, 1\] of shape \(1, H, W\), but got \(8, 8\)"):
        data.sets["forget"][0]


def test_what_does_not_fit_is_refused(words: str, tmp_path: Path) -> None:
    image = torch.zeros(3, 8, 8)

    def fail(error: type[Exception], match: str, forget: Any, **options: Any) -> None:
        with pytest.raises(error, match=match):
            CaptionedImageDataModule(forget, tokenizer=words, **({"size": 8} | options)).setup("fit")

    fail(ValueError, "size must be", [], size=30)
    fail(ValueError, "got no words", [], anchor={})
    fail(ValueError, "Give concept or anchor, not both", [], anchor="art", concept="{} in red")
    fail(ValueError, "concept is a template with {}", [], concept="red")
    fail(ValueError, "forget set is empty", [])
    fail(ValueError, r"no 'image'; it has \['caption'\]", [{"caption": "red"}])
    fail(ValueError, "no text under caption", [{"image": image}])
    fail(FileNotFoundError, "neither a folder of images nor a table", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    fail(ValueError, "has no images", str(tmp_path / "empty"))
    (tmp_path / "empty" / "metadata.csv").write_text("file_name,text\nnone.png,red\n")
    fail(FileNotFoundError, r"names 1 images that do not exist, such as .*none.png", str(tmp_path / "empty"))
    data = CaptionedImageDataModule([{"image": torch.zeros(8, 8), "caption": "red"}], size=8, tokenizer=words)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"shape \(3, H, W\), but got \(8, 8\)"):
        data.sets["forget"][0]
