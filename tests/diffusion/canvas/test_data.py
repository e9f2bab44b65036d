"""Rows of a folder in the published layout: to train on, and to erase one style or object."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.diffusion.canvas.data import CanvasTrainingDataModule
from lightning_unlearn.diffusion.canvas.folder import StyleObjectFolder
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS, CanvasNames
from lightning_unlearn.diffusion.canvas.target_data import CanvasDataModule
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from tests.diffusion import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One that knows every word of the prompts."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("words")
    names = [UNLEARN_CANVAS.word(name) for name in (*UNLEARN_CANVAS.all_styles, *UNLEARN_CANVAS.objects)]
    words = [word.lower() for name in names for word in name.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WORDS", ["a", "image", "in", "style", ".", *dict.fromkeys(words)])
        tiny.write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_the_published_layout_has_1020_pairs(canvas: Path) -> None:
    folder = StyleObjectFolder(canvas)
    assert (len(folder), folder.images, folder.holes) == (51 * 20 * 3, 3, ())
    reference = folder.items(styles=UNLEARN_CANVAS.styles, numbers=range(1, 6))
    assert len(reference) == 50 * 20 * 3
    assert len({item.path for item in reference}) == len(reference)


def test_rows_to_train_on_have_numbers_and_captions(canvas: Path, tokenizer: Any) -> None:
    data = CanvasTrainingDataModule(str(canvas), captions=True, size=16, tokenizer=tokenizer, batch_size=1000)
    data.setup("fit")
    assert {split: len(rows) for split, rows in data.sets.items()} == dict.fromkeys(("train", "val", "test"), 1020)
    batch = next(iter(data.val_dataloader()["canvas"]))
    rows = data.sets["val"]
    assert batch["pixel_values"].shape == (1000, 3, 16, 16)
    assert (batch["style"] * 20 + batch["object"]).tolist() == batch["index"].tolist() == list(range(1000))
    cats = UNLEARN_CANVAS.objects.index("Cats")
    van_gogh, photo = (rows[UNLEARN_CANVAS.all_styles.index(s) * 20 + cats] for s in ("Van_Gogh", "Seed_Images"))
    decoded = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in (van_gogh, photo)]
    assert [text.replace(" .", ".") for text in decoded] == [
        "a cats image in van gogh style.",
        "a cats image in photo style.",
    ]
    # Image number 2 of each pair validates.
    tones = (van_gogh["pixel_values"].mean((1, 2)) * 0.5 + 0.5) * 255
    tone = (UNLEARN_CANVAS.all_styles.index("Van_Gogh") + 3 * cats + 2) % 10
    torch.testing.assert_close(tones, torch.tensor([25.0 * tone, 128, 255 - 25 * tone]), atol=3, rtol=0)


def test_images_are_mirrored_while_training_only(tmp_path: Path) -> None:
    from PIL import Image

    half = Image.frombytes("RGB", (2, 1), bytes([0, 0, 0, 255, 255, 255])).resize((16, 16), Image.Resampling.NEAREST)
    names = CanvasNames(("A",), ("x",), photo=None)
    (tmp_path / "grid" / "A" / "x").mkdir(parents=True)
    for number in range(1, 4):
        half.save(tmp_path / "grid" / "A" / "x" / f"{number}.png")
    data = CanvasTrainingDataModule(str(tmp_path / "grid"), names, size=16, flip=0.5)
    data.setup("fit")
    torch.manual_seed(0)
    left = {split: [float(rows[0]["pixel_values"][0, 0, 0]) for _ in range(20)] for split, rows in data.sets.items()}
    assert set(left["train"]) == {-1.0, 1.0}
    assert set(left["val"]) == set(left["test"]) == {-1.0}


@pytest.mark.parametrize(
    ("target", "anchor", "forget", "retain", "caption", "anchored"),
    [
        ("Van_Gogh", None, 60, 60, "A Sea image in Van Gogh style.", "A Sea image in Photo style."),
        ("Van_Gogh", "Cold_Warm", 60, 60, "A Sea image in Van Gogh style.", "A Sea image in Cold Warm style."),
        ("Cats", None, 153, 57, "A Cats image in Monet style.", "A Dogs image in Monet style."),
        ("Waterfalls", None, 153, 57, "A Waterfalls image in Monet style.", "A Architectures image in Monet style."),
    ],
)
def test_a_target_has_the_published_numbers_of_images(
    canvas: Path, target: str, anchor: str | None, forget: int, retain: int, caption: str, anchored: str
) -> None:
    data = CanvasDataModule(target, str(canvas), anchor=anchor)
    rows, kept = data.rows_of("forget"), data.rows_of("retain")
    assert (len(rows), len(kept)) == (forget, retain)
    assert all(target in row["image"].parts for row in rows)
    assert {(row["caption"], row["anchor"]) for row in rows} >= {(caption, anchored)}
    assert all("Seed_Images" in row["image"].parts and target not in row["image"].parts for row in kept)
    assert set(Counter(row["caption"] for row in rows).values()) == {3}


def test_images_of_the_anchor_are_called_the_target(canvas: Path) -> None:
    rows = CanvasDataModule("Van_Gogh", str(canvas), rows="anchor_images", images=1).rows_of("forget")
    assert len(rows) == 20
    assert all(row["image"].parts[-3] == "Seed_Images" for row in rows)
    cats = next(row for row in rows if row["image"].parts[-2] == "Cats")
    assert (cats["caption"], cats["anchor"]) == ("A Cats image in Van Gogh style.", "A Cats image in Photo style.")


def test_prompts_need_no_folder(canvas: Path) -> None:
    data = CanvasDataModule("Cold_Warm", rows="prompts", retain="others")
    rows = data.rows_of("forget")
    assert rows[0] == {"prompt": "Cold Warm", "anchor": "Photo"}
    assert (len(rows), len(data.rows_of("retain"))) == (21, 50 * 20)
    assert not any("Cold Warm" in row["prompt"] for row in data.rows_of("retain"))
    with_images = CanvasDataModule("Cold_Warm", str(canvas), retain="others", images=2).rows_of("retain")
    assert len(with_images) == 50 * 20 * 2


def test_impossible_targets_are_refused(canvas: Path) -> None:
    for options, message in [
        ({"target": "Seed_Images", "rows": "prompts"}, "target must be"),
        ({"target": "Monet"}, "there is none. Give one, or rows='prompts'"),
        ({"target": "Monet", "rows": "prompts", "anchor": "Cats"}, "anchor must be"),
        ({"target": "Monet", "rows": "prompts", "anchor": "Monet"}, "anchor must be"),
        ({"target": "A", "rows": "prompts", "names": CanvasNames(("A", "B"), ("x",), None)}, "no photos to retain"),
    ]:
        with pytest.raises(ValueError, match=message):
            CanvasDataModule(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images=4, but .* has 3 of each pair"):
        CanvasDataModule("Monet", str(canvas), images=4).rows_of("forget")


@pytest.mark.parametrize("rows", ["images", "prompts"])
def test_batches_are_those_of_methods_of_images_and_of_prompts(canvas: Path, tokenizer: Any, rows: Any) -> None:
    data = CanvasDataModule(
        "Van_Gogh", str(canvas), rows, size=16, tokenizer=tokenizer, batch_size=5, retain_batch_size=2
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["forget"]["anchor_input_ids"].shape[0] == 5
    assert batch["retain"]["input_ids"].shape[0] == 2
    assert ("pixel_values" in batch["forget"]) == ("pixel_values" in batch["retain"]) == (rows == "images")
    assert not torch.equal(batch["forget"]["anchor_input_ids"], batch["forget"]["input_ids"])


def test_a_base_model_is_fine_tuned_on_all_names(
    canvas: Path, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["lightning-unlearn"])
    command = ["fit", "--config", "examples/canvas_base.yaml", f"--model.init_args.model={tiny_sd}"]
    command += [f"--data.init_args.folder={canvas}", "--data.init_args.size=16", "--data.init_args.num_workers=0"]
    command += ["--data.init_args.batch_size=8", "--trainer.precision=32-true", "--trainer.accelerator=cpu"]
    command += ["--trainer.accumulate_grad_batches=1", "--trainer.max_epochs=1", "--trainer.limit_val_batches=1"]
    command += ["--trainer.limit_train_batches=2"]
    command += ["--model.init_args.lr=1e-3", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    before = LitTextToImage(str(tiny_sd)).state_dict()
    cli = UnlearnCLI([*command, "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"])
    changed = {name for name, value in cli.model.state_dict().items() if not torch.equal(value, before[name])}
    unet = {name for name in before if name.startswith("unet.")}
    assert changed == unet
    assert {"train/denoising", "val/canvas_denoising"} <= set(cli.trainer.callback_metrics)
