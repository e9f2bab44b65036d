"""Scoring of answer sets, also of those that another tool has made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_unlearn import (
    CanvasClassifier,
    CanvasJudges,
    ImageFeatures,
    LitTextToImage,
    sample_answers,
    score_answers,
)
from lightning_unlearn.diffusion.canvas import decoding, scoring
from lightning_unlearn.diffusion.canvas.answer_files import find_answers
from lightning_unlearn.diffusion.canvas.decoding import ImageBatches
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, UNLEARN_CANVAS, CanvasNames
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline

NAMES = CanvasNames(("Van_Gogh", "Rust"), ("Cats", "Sea", "Dogs"))


def paint(path: Path, style: int, object: int, size: tuple[int, int] = (8, 8), names: Any = "RGB") -> None:
    """An image whose red tells the style, and whose green the object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (4 + 5 * style, 6 + 12 * object, 90))
    image.save(path, quality=95) if path.suffix.lower() in (".jpg", ".jpeg") else image.save(path)


def style_of(images: Tensor) -> Tensor:
    return (images[:, 0].mean((1, 2)) * 255 - 4).div(5).round().long()


def object_of(images: Tensor) -> Tensor:
    return (images[:, 1].mean((1, 2)) * 255 - 6).div(12).round().long()


def answer_set(folder: Path, names: CanvasNames = NAMES, seeds: Sequence[int] = (188, 288)) -> Path:
    for s, style in enumerate(names.all_styles):
        for o, object in enumerate(names.objects):
            for seed in seeds:
                paint(folder / names.file_name(style, object, seed, ".png"), s, o)
    return folder


class Counting:
    """Judges of the colours, which count what they see and may fail."""

    version = "1"

    def __init__(self, function: Any, name: str = "colours", fails_after: int | None = None) -> None:
        self.function, self.name, self.fails_after = function, name, fails_after
        self.shapes: list[tuple[int, ...]] = []

    @property
    def seen(self) -> int:
        return sum(shape[0] for shape in self.shapes)

    def __call__(self, images: Tensor) -> Tensor:
        if self.fails_after is not None and self.seen >= self.fails_after:
            raise KeyboardInterrupt
        self.shapes.append(tuple(images.shape))
        return self.function(images)


def test_a_folder_that_another_tool_made_by_hand(tmp_path: Path) -> None:
    ends = (".jpg", ".png", ".jpeg", ".JPG")
    for s, style in enumerate(UNLEARN_CANVAS.all_styles):
        for o, object in enumerate(UNLEARN_CANVAS.objects):
            file = UNLEARN_CANVAS.file_name(style, object, 188, ends[(s + o) % 4])
            paint(tmp_path / style / file, s, (o + (style == "Rust")) % 20, (8 + 4 * (o % 3), 8 + 4 * (s % 2)))
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "Rust" / "._Rust_Cats_seed188.jpg").write_text("")
    (tmp_path / "results.csv").write_text("")
    judges = Counting(style_of), Counting(object_of)
    with pytest.warns(
        UserWarning, match=r"3 files in .* are skipped: .DS_Store, results.csv, Rust/._Rust_Cats_seed188"
    ):
        scores = score_answers(tmp_path, UNLEARN_CANVAS, judges, workers=2)
    assert not scores.missing(photo=True)
    assert scores.seeds == (188,)
    assert scores.style_right.all()
    rust = UNLEARN_CANVAS.styles.index("Rust")
    wrong = (~scores.object_right).nonzero()
    assert wrong[:, 0].unique().tolist() == [rust]
    assert len(wrong) == 20
    shapes = judges[0].shapes
    assert {shape[2:] for shape in shapes} == {(h, w) for h in (8, 12) for w in (8, 12, 16)}
    assert sum(shape[0] for shape in shapes) == 1020
    assert 32 < max(shape[0] for shape in shapes) <= 64


def test_names_of_no_answer_set_are_listed(tmp_path: Path) -> None:
    answer_set(tmp_path)
    paint(tmp_path / "more" / "Monet_Cats_seed188.jpg", 0, 0)
    with pytest.raises(ValueError, match=r"1 images in .* are not named .*: more/Monet_Cats_seed188.jpg\. Rename"):
        score_answers(tmp_path, NAMES, (style_of, object_of))


def test_an_image_in_two_formats_is_refused_with_both_names(tmp_path: Path) -> None:
    answer_set(tmp_path)
    paint(tmp_path / "Rust_Sea_seed188.jpg", 0, 0)
    with pytest.raises(ValueError, match=r"there twice: Rust_Sea_seed188.jpg and Rust_Sea_seed188.png"):
        score_answers(tmp_path, NAMES, (style_of, object_of))


def test_a_folder_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        find_answers(tmp_path / "nowhere", NAMES)
    with pytest.raises(FileNotFoundError, match=r"such as Van_Gogh_Cats_seed188.jpg"):
        find_answers(tmp_path, NAMES)
    answer_set(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no image of the seeds \[5\]"):
        find_answers(tmp_path, NAMES, [5])


def test_holes_and_seeds(tmp_path: Path) -> None:
    answer_set(tmp_path)
    (tmp_path / "Rust_Sea_seed188.png").unlink()
    scores = score_answers(tmp_path, NAMES, (style_of, object_of), seeds=[188])
    assert scores.seeds == (188,)
    assert scores.missing(photo=True) == ["Rust_Sea_seed188.jpg"]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_do_not_matter(tmp_path: Path, batch_size: int) -> None:
    answer_set(tmp_path)
    scores = score_answers(tmp_path, NAMES, (style_of, object_of), batch_size=batch_size)
    assert scores.style_right.all()
    assert scores.object_right.all()
    assert (tmp_path / "scores.csv").read_text().count("\n") == 1 + 18


def test_images_are_resized_as_asked(tmp_path: Path) -> None:
    answer_set(tmp_path)
    paint(tmp_path / "Rust_Sea_seed188.png", 1, 1, (30, 20))
    judges = Counting(style_of), Counting(object_of)
    assert score_answers(tmp_path, NAMES, judges, size=16).style_right.all()
    assert judges[0].shapes == [(18, 3, 16, 16)]


def test_an_interrupted_scoring_goes_on(tmp_path: Path) -> None:
    answer_set(tmp_path)
    options: dict[str, Any] = {"batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        score_answers(tmp_path, NAMES, (Counting(style_of, fails_after=8), Counting(object_of)), **options)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 1 + 8
    judges = Counting(style_of), Counting(object_of)
    scores = score_answers(tmp_path, NAMES, judges, **options)
    assert judges[0].seen == judges[1].seen == 10
    assert scores.style_right.all()
    done = (tmp_path / "scores.csv").read_bytes()
    again = Counting(style_of), Counting(object_of)
    assert score_answers(tmp_path, NAMES, again, **options).object_right.all()
    assert again[0].seen == 0
    assert (tmp_path / "scores.csv").read_bytes() == done


def test_verdicts_are_written_while_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_set(tmp_path)
    monkeypatch.setattr(scoring, "_SECONDS", 0.0)
    lines = []

    def judge(images: Tensor) -> Tensor:
        file = tmp_path / "scores.csv"
        lines.append(file.read_text().count("\n") if file.exists() else 0)
        return style_of(images)

    score_answers(tmp_path, NAMES, (judge, object_of), batch_size=6)
    assert lines == [0, 7, 13]


def test_a_newer_image_is_judged_again(tmp_path: Path) -> None:
    answer_set(tmp_path)
    score_answers(tmp_path, NAMES, (Counting(style_of), Counting(object_of)))
    paint(tmp_path / "Rust_Sea_seed188.png", 0, 1)
    later = (tmp_path / "scores.csv").stat().st_mtime + 5
    os.utime(tmp_path / "Rust_Sea_seed188.png", (later, later))
    judges = Counting(style_of), Counting(object_of)
    scores = score_answers(tmp_path, NAMES, judges)
    assert judges[0].seen == 1
    assert scores.style_right.sum() == 17


def test_verdicts_of_images_that_are_gone_are_dropped(tmp_path: Path) -> None:
    answer_set(tmp_path)
    judges = Counting(style_of), Counting(object_of)
    score_answers(tmp_path, NAMES, judges)
    (tmp_path / "Rust_Sea_seed188.png").unlink()
    assert score_answers(tmp_path, NAMES, judges).missing() == ["Rust_Sea_seed188.jpg"]
    assert "Rust,Sea,188" not in (tmp_path / "scores.csv").read_text()


def test_other_judges_are_refused(tmp_path: Path) -> None:
    answer_set(tmp_path / "answers")
    score_answers(tmp_path / "answers", NAMES, (Counting(style_of), Counting(object_of)))
    others = Counting(style_of, "others"), Counting(object_of)
    with pytest.raises(ValueError, match="other judges, settings or answers: style 'colours@1', not 'others@1'"):
        score_answers(tmp_path / "answers", NAMES, others)
    assert score_answers(tmp_path / "answers", NAMES, others, output=tmp_path / "others").style_right.all()
    (tmp_path / "answers" / "scores.json").unlink()
    with pytest.raises(ValueError, match="style None"):
        score_answers(tmp_path / "answers", NAMES, others)


def test_broken_images_are_named_when_the_others_are_scored(tmp_path: Path) -> None:
    answer_set(tmp_path)
    whole = (tmp_path / "Van_Gogh_Dogs_seed288.png").read_bytes()
    (tmp_path / "Rust_Sea_seed188.png").write_bytes(b"")
    (tmp_path / "Van_Gogh_Dogs_seed288.png").write_bytes(whole[:50])
    with pytest.raises(ValueError, match=r"2 images can't be read.*Van_Gogh_Dogs_seed288.png.*Rust_Sea_seed188.png"):
        score_answers(tmp_path, NAMES, (style_of, object_of))
    assert (tmp_path / "scores.csv").read_text().count("\n") == 1 + 16


def test_no_more_than_four_batches_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    lock, decoded = threading.Lock(), [0]

    def decode(file: Path, size: int | None) -> Tensor:
        with lock:
            decoded[0] += 1
        side = 4 + int(file.name) % 7
        return torch.zeros(3, side, side, dtype=torch.uint8)

    monkeypatch.setattr(decoding, "_decode", decode)
    taken, most = 0, 0
    places: list[int] = []
    for numbers, images in ImageBatches([Path(str(i)) for i in range(300)], batch_size=8, workers=3):
        most = max(most, decoded[0] - taken)
        taken += len(images)
        places += numbers
        assert {tuple(image.shape) for image in images} == {(3, 4 + numbers[0] % 7, 4 + numbers[0] % 7)}
    assert most <= 4 * 8
    assert sorted(places) == list(range(300))


def test_images_of_other_modes(tmp_path: Path) -> None:
    Image.new("L", (4, 6), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 6), (255, 0, 0, 10)).save(tmp_path / "clear.png")
    Image.new("P", (4, 6)).save(tmp_path / "palette.png")
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    ((places, images),) = ImageBatches(sorted(tmp_path.iterdir()))
    assert places == [0, 1, 2, 3]
    assert images.shape == (4, 3, 6, 4)
    assert images[0, :, 0, 0].tolist() == [255, 0, 0]
    assert images[1].unique().tolist() == [128]


def test_functions_that_give_no_positions_are_refused(tmp_path: Path) -> None:
    answer_set(tmp_path)
    with pytest.raises(ValueError, match=r"style judge has no classes.*from 0 to 2; .* up to 13"):
        score_answers(tmp_path, NAMES, (lambda images: style_of(images) + 11, object_of))
    with pytest.raises(ValueError, match="object judge has no classes"):
        score_answers(tmp_path, NAMES, (style_of, lambda images: images.mean((1, 2, 3))))
    with pytest.raises(TypeError, match="a judge of the style and one of the object"):
        score_answers(tmp_path, NAMES, style_of)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features='judges'"):
        score_answers(tmp_path, NAMES, (style_of, object_of), features="judges")


class Shuffled(Counting):
    """A judge with its classes in another order than the names."""

    def __init__(self, function: Any, classes: tuple[str, ...]) -> None:
        super().__init__(function)
        self.classes = classes

    def __call__(self, images: Tensor) -> Any:
        labels = len(self.classes) - 1 - super().__call__(images)
        return labels, torch.nn.functional.one_hot(labels, len(self.classes)).float()


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    answer_set(tmp_path)
    style = Shuffled(style_of, ("Photo", "rust", "Van Gogh"))
    object = Shuffled(object_of, NAMES.objects[::-1])
    scores = score_answers(tmp_path, NAMES, (style, object))
    assert scores.style_right.all()
    assert scores.object_right.all()
    with pytest.raises(ValueError, match="Rust"):
        score_answers(tmp_path, NAMES, (Shuffled(style_of, ("Photo", "Van Gogh")), object))
    with pytest.raises(ValueError, match="other styles and objects than the names"):
        score_answers(tmp_path, NAMES, CanvasJudges.miniature())


@pytest.mark.parametrize("features", [None, "judges"])
def test_an_image_passes_once_through_a_shared_network(tmp_path: Path, features: Any) -> None:
    answer_set(tmp_path)
    network = CanvasClassifier("miniature", {"style": NAMES.all_styles, "object": NAMES.objects})
    seen = []
    network.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    score_answers(tmp_path, NAMES, CanvasJudges.of(network, NAMES), batch_size=10, features=features)
    assert seen == [10, 8]
    assert (tmp_path / "features.safetensors").exists() == (features is not None)


def test_features_are_resumed_with_the_verdicts(tmp_path: Path) -> None:
    def extract(images: Tensor) -> Tensor:
        extracted.append(len(images))
        return images.mean((2, 3))

    extracted: list[int] = []
    answer_set(tmp_path)
    judges = Counting(style_of), Counting(object_of)
    score_answers(tmp_path, NAMES, judges, seeds=[188])
    options: dict[str, Any] = {"batch_size": 5, "features": extract}
    with pytest.raises(KeyboardInterrupt):
        score_answers(tmp_path, NAMES, (Counting(style_of, fails_after=10), judges[1]), **options)
    assert sum(extracted) == 10
    score_answers(tmp_path, NAMES, judges, **options)
    assert sum(extracted) == 18
    features = ImageFeatures.read(tmp_path / "features.safetensors", NAMES)
    assert len(features.images) == 18
    for (style, object, _), value in zip(features.images, features.values, strict=True):
        wanted = [4 + 5 * NAMES.all_styles.index(style), 6 + 12 * NAMES.objects.index(object), 90]
        assert (value * 255).round().tolist() == wanted


def test_features_of_images_that_changed_are_not_kept(tmp_path: Path) -> None:
    answer_set(tmp_path)
    judges = Counting(style_of), Counting(object_of)
    score_answers(tmp_path, NAMES, judges, features=lambda images: images.mean((2, 3)))
    later = (tmp_path / "features.safetensors").stat().st_mtime + 5
    os.utime(tmp_path / "Rust_Sea_seed188.png", (later, later))
    score_answers(tmp_path, NAMES, judges)
    assert not (tmp_path / "features.safetensors").exists()


def test_the_miniature_is_drawn_and_scored(tmp_path: Path) -> None:
    module, judges = LitTextToImage(str(miniature_pipeline())), CanvasJudges.miniature()
    options: dict[str, Any] = {"steps": 10, "guidance": 4.0, "batch_size": 25, "photo": False, "suffix": ".png"}
    assert sample_answers(module, tmp_path, "mini", (188,), **options) == 25
    scores = score_answers(tmp_path, "mini", judges, features="judges")
    assert scores.style_right[:-1].float().mean() >= 0.9
    assert scores.object_right[:-1].float().mean() >= 0.8
    assert not scores.missing()
    features = ImageFeatures.read(tmp_path / "features.safetensors", MINI_CANVAS)
    assert features.retained("ember").values.shape == (20, 1024)
