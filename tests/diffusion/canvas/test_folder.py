"""Folders in the published layout: the whole grid, its holes, natural order, splits; and the miniature's export."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from lightning_unlearn.diffusion.canvas.export import export_mini_canvas
from lightning_unlearn.diffusion.canvas.folder import StyleObjectFolder, split_numbers
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, UNLEARN_CANVAS, names_of
from lightning_unlearn.diffusion.data.captioned_images import pixels
from lightning_unlearn.diffusion.data.miniature import render


def linked(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    os.link(target, link)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Three styles of two objects, and ten photos of each in letters and numbers, with things that are no images."""
    root, image = tmp_path / "grid", tmp_path / "image.jpg"
    Image.new("RGB", (8, 8), "red").save(image)
    for style in ("Cold_Warm", "Monet", "Techno", "Seed_Images"):
        for object in ("Cats", "Sea"):
            for number in range(1, 11):
                linked(image, root / style / object / (f"{number}.jpg" if style != "Monet" else f"img_{number:03}.PNG"))
    linked(image, root / "Monet" / "Cats" / "._3.jpg")
    (root / "Monet" / "Cats" / "Thumbs.db").write_text("")
    (root / "README.md").write_text("")
    return root


SMALL = type(UNLEARN_CANVAS)(("Monet", "Cold_Warm"), ("Sea", "Cats"))


def test_images_are_in_the_order_of_names_and_numbers(grid: Path) -> None:
    folder = StyleObjectFolder(grid, SMALL)
    assert (folder.images, len(folder), folder.holes) == (10, 60, ())
    items = folder.items()
    assert list(dict.fromkeys(item.style for item in items)) == ["Monet", "Cold_Warm", "Seed_Images"]
    assert [item.object for item in items[:20]] == ["Sea"] * 10 + ["Cats"] * 10
    assert [item.number for item in items[:10]] == list(range(1, 11))
    assert [item.path.name for item in items[20:30]] == [f"{number}.jpg" for number in range(1, 11)]
    assert folder.caption(items[20]) == "A Sea image in Cold Warm style."
    assert folder.caption(items[40]) == "A Sea image in Photo style."
    chosen = folder.items(styles=["Cold_Warm"], objects=["Cats"], numbers=range(1, 4))
    assert [item.number for item in chosen] == [1, 2, 3]
    assert len(StyleObjectFolder(grid, SMALL, images=4)) == 24


def test_of_twenty_images_18_train_one_validates_and_one_tests(grid: Path) -> None:
    assert int(20 * (1 - 0.9)) == 1  # what the released code computes with floats
    train, val, test = (list(split_numbers(20, split)) for split in ("train", "val", "test"))  # type: ignore[arg-type]
    assert (train, val, test) == (list(range(1, 19)), [19], [20])
    for images in (3, 10, 39, 40, 100):
        splits = [split_numbers(images, split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
        assert [number for split in splits for number in split] == list(range(1, images + 1))
        assert len(splits[1]) == len(splits[2]) == max(1, images // 20)
    folder = StyleObjectFolder(grid, SMALL)
    assert [len(folder.items(split)) for split in ("train", "val", "test", "all")] == [48, 6, 6, 60]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images of each pair must be at least 3, but got 2"):
        split_numbers(2, "train")


def test_holes_are_listed(grid: Path) -> None:
    for hole in ("Cold_Warm/Cats/9.jpg", "Cold_Warm/Cats/2.jpg"):
        (grid / hole).unlink()
    for photo in (grid / "Seed_Images" / "Sea").iterdir():
        photo.unlink()
    holes = r"lacks 12 of 3 x 2 x 10 images: Cold_Warm/Cats 2, 9; Seed_Images/Sea all\."
    with pytest.raises(FileNotFoundError, match=f"{holes} Add them, or pass incomplete=True"):
        StyleObjectFolder(grid, SMALL)
    with pytest.warns(UserWarning, match=holes):
        folder = StyleObjectFolder(grid, SMALL, incomplete=True)
    assert folder.holes[:2] == (("Cold_Warm", "Cats", 2), ("Cold_Warm", "Cats", 9))
    assert len(folder) == 48
    with pytest.raises(ValueError, match=r"no image of these .* \[4\] of them were asked for"):
        folder.items(styles=["Seed_Images"], objects=["Sea"], numbers=[4])


def test_folders_of_another_kind_are_refused(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        StyleObjectFolder(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"such as .*/Abstractionism/Architectures/1\.jpg"):
        StyleObjectFolder(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"lacks 10140 of 51 x 20 x 10 images: .*; and images of 1004 more pairs"
    ):
        StyleObjectFolder(grid)
    with pytest.raises(ValueError, match=r"style must be .* but got 'Techno'"):
        StyleObjectFolder(grid, SMALL).items(styles=["Techno"])
    linked(tmp_path / "image.jpg", grid / "Cold_Warm" / "Sea" / "cover.jpg")
    with pytest.raises(ValueError, match="not named by a number"):
        StyleObjectFolder(grid, SMALL)
    (grid / "Cold_Warm" / "Sea" / "cover.jpg").unlink()
    linked(tmp_path / "image.jpg", grid / "Monet" / "Sea" / "7.jpg")
    with pytest.raises(ValueError, match="has image 7 twice"):
        StyleObjectFolder(grid, SMALL)
    with pytest.raises(ValueError, match="names must be 'unlearncanvas' or 'mini'"):
        names_of("canvas")


@pytest.mark.parametrize(("suffix", "tolerance"), [(".jpg", 0.15), (".png", 0.5 / 255 + 1e-6)])
def test_the_miniature_is_exported_in_this_layout(suffix: str, tolerance: float, tmp_path: Path) -> None:
    folder = export_mini_canvas(tmp_path / "mini", images=2, first=7, suffix=suffix)
    assert len(folder) == 6 * 5 * 2
    assert (tmp_path / "mini" / "photo" / "ring" / f"2{suffix}").is_file()
    for style in MINI_CANVAS.all_styles:
        (item,) = folder.items(styles=[style], objects=["ring"], numbers=[2])
        difference = (pixels(item.path, 32) - render("ring", style, 8).clamp(0, 1)).abs()
        assert difference.max() <= tolerance
        assert difference.mean() < 0.02
    with pytest.raises(FileExistsError, match="not written over"):
        export_mini_canvas(tmp_path / "mini")
