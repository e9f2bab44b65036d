"""FID and KID of what an answer set retains."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

from lightning_unlearn import ImageFeatures, StyleObjectFolder, fid_retain, fid_vs_base, image_features, kid_retain
from lightning_unlearn.diffusion.canvas.features import Image
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS, CanvasNames

NAMES = CanvasNames(("A", "B_C", "D"), ("x", "y"))
SQUARE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def grid(names: CanvasNames, numbers: range = range(5)) -> tuple[Image, ...]:
    return tuple((s, o, n) for (s, o), n in itertools.product(names.pairs(photo=True), numbers))


def square(target: str, shift: tuple[float, float] = (0.0, 0.0), source: str = "pixels") -> ImageFeatures:
    """Each pair without the target has the four corners of a square; those with it, and the photos, are far away."""
    images = grid(NAMES, range(4))
    values = torch.stack([SQUARE[n] + torch.tensor(shift) for _, _, n in images])
    far = torch.tensor([target in image or NAMES.photo in image for image in images])
    values[far] = 1000 * torch.randn(int(far.sum()), 2, generator=torch.Generator().manual_seed(int(sum(shift))))
    return ImageFeatures(NAMES, images, values, source)


@pytest.mark.parametrize(
    ("target", "photo", "count"),
    [
        ((), False, 5000),
        ("Van_Gogh", False, 4900),
        ("Cats", False, 4750),
        (["Van_Gogh", "Monet"], False, 4800),
        ((), True, 5100),
        ("Van_Gogh", True, 5000),
        ("Cats", True, 4845),
    ],
)
def test_counts_of_the_published_sets(target: str | list[str], photo: bool, count: int) -> None:
    images = grid(UNLEARN_CANVAS)
    features = ImageFeatures(UNLEARN_CANVAS, images, torch.zeros(len(images), 1), "none")
    assert len(features.retained(target, photo).images) == count


@pytest.mark.parametrize("target", ["B_C", "y"])
def test_the_target_counts_on_neither_side(target: str) -> None:
    # Of n images in n / 4 equal squares, the covariances of both sides are equal: the distance is that of the means.
    assert fid_retain(square(target, (3.0, 4.0)), square(target), target) == pytest.approx(25, abs=1e-3)
    assert fid_retain(square(target), square(target, (3.0, 4.0)), target) == pytest.approx(25, abs=1e-3)
    assert fid_retain(square(target, (3.0, 4.0)), square(target)) > 1000


def test_kid_of_what_is_retained() -> None:
    names = CanvasNames(("A",), ("x", "y"), photo=None)
    images = (*(("A", "x", n) for n in range(4)), ("A", "y", 0))
    real = ImageFeatures(names, images, torch.cat([SQUARE, SQUARE[:1] + 9]), "pixels")
    shifted = replace(real, values=real.values + torch.tensor([3.0, 4.0]))
    assert kid_retain(real, real, "y", subsets=1, subset_size=4)[0] == pytest.approx(-1.0729167)
    assert kid_retain(shifted, real, "y", subsets=1, subset_size=4)[0] == pytest.approx(5109.5208, rel=1e-5)
    with pytest.raises(ValueError, match="subsets of 1000 images, but got 4 real and 4"):
        kid_retain(real, real, "y")


def test_distance_from_the_base_model_is_of_the_same_images() -> None:
    base = square("A")
    assert fid_vs_base(base, base, "A") == pytest.approx(0, abs=1e-6)
    assert fid_vs_base(square("A", (3.0, 4.0)), base, "A") == pytest.approx(25, abs=1e-3)
    other = replace(base, images=tuple((s, o, n + 1) for s, o, n in base.images))
    with pytest.raises(ValueError, match="8 images are in one of the two sets only: B_C_x_seed0"):
        fid_vs_base(base, other, "A")


def test_what_does_not_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="of one source, but these are of 'pixels' and 'others'"):
        fid_retain(square("A"), square("A", source="others"), "A")
    with pytest.raises(ValueError, match="target must be 'A', 'B_C', 'D', 'x' or 'y', but got 'z'"):
        fid_retain(square("A"), square("A"), "z")
    whole = square("A")
    holes = whole.of({image for image in whole.images if image[:2] != ("B_C", "x")})
    with pytest.raises(ValueError, match="1 of 4 pairs of a style and an object have no image: B_C x"):
        fid_retain(whole, holes, "A")
    assert fid_retain(whole.retained("B_C"), holes, "B_C") == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="there twice"):
        ImageFeatures(NAMES, (("A", "x", 1), ("A", "x", 1)), torch.zeros(2, 3), "pixels")
    with pytest.raises(ValueError, match=r"\(1, D\), but got \(2, 3\)"):
        ImageFeatures(NAMES, (("A", "x", 1),), torch.zeros(2, 3), "pixels")


def test_features_survive_their_file(tmp_path: Path) -> None:
    features = square("A")
    features.write(tmp_path / "features.safetensors")
    back = ImageFeatures.read(tmp_path / "features.safetensors", NAMES)
    assert (back.images, back.source) == (features.images, "pixels")
    assert torch.equal(back.values, features.values)
    with pytest.raises(ValueError, match="of other styles and objects"):
        ImageFeatures.read(tmp_path / "features.safetensors", UNLEARN_CANVAS)


def test_features_of_the_data(tmp_path: Path) -> None:
    def red(images: Tensor) -> Tensor:
        return (images[:, :1].mean((2, 3)) * 255).round()

    for number, (style, object) in enumerate(NAMES.pairs(photo=True)):
        for n in (1, 2):
            file = tmp_path / style / object / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Pillow.new("RGB", (8 + number % 2, 8), (number, 0, 0)).save(file)
    data = StyleObjectFolder(tmp_path, NAMES)
    features = image_features(data.items(numbers=[1]), NAMES, red, batch_size=2)
    assert {image: value.item() for image, value in zip(features.images, features.values, strict=True)} == {
        (*pair, 1): number for number, pair in enumerate(NAMES.pairs(photo=True))
    }
    assert image_features(data.items(), NAMES, red, size=4).source != features.source
    with pytest.raises(ValueError, match=r"shape \(B, D\), but 8 images got \(8, 3, 8, 8\)"):
        image_features(data.items(), NAMES, lambda images: images)
