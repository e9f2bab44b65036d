"""Side effects of erasure, on answers made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch

from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, CanvasNames
from lightning_unlearn.diffusion.canvas.neighbours import Neighbours
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.canvas.side_effects import (
    SideEffects,
    redirect_entropy,
    side_effect_rates,
    side_effects,
)

NAMES = CanvasNames(("t", "near", "far", "other", "fifth"), ("o", "p"), photo="anchor")
NEIGHBOURS = Neighbours(("near",), ("far",), "anchor")


def perfect(names: CanvasNames, seeds: Sequence[int] = (1, 2, 3, 4, 5), photo: bool = True) -> AnswerScores:
    scores = AnswerScores.empty(names, seeds)
    scores.style[:] = torch.arange(len(names.all_styles))[:, None, None]
    scores.object[:] = torch.arange(len(names.objects))[None, :, None]
    if not photo:
        scores.style[-1] = scores.object[-1] = -1
    return scores


def test_side_effects_by_hand() -> None:
    """near 1.0 -> .6, far 1.0 -> .9; of others' 50 prompts 3 are judged T, of the base 1."""
    base, after = perfect(NAMES), perfect(NAMES)
    base.style[3, 0, 0] = 0
    after.style[1, :, :2] = 3  # near: 4 of 10 wrong
    after.style[2, 0, 0] = 0  # far: 1 of 10 wrong, a leak
    after.style[3, :, 0] = 0  # two further leaks
    after.style[0] = torch.tensor([[5, 5, 5, 5, 5], [5, 1, 1, 2, 2]])  # the target: anchor 6, near 2, far 2
    after.object[0, 0, :4] = 1
    found = side_effects(after, base, "t", NEIGHBOURS)
    assert (found.near.base_rate, found.near.rate, found.far.rate) == (1.0, 0.6, 0.9)
    assert found.excess_near == pytest.approx(0.3)
    assert found.anchor is not None
    assert found.anchor.rate == 1.0
    assert sum(found.leaks.images) == 50
    assert (sum(found.leaks.after), sum(found.leaks.base)) == (3, 1)
    assert found.leak_in == pytest.approx(0.04)
    assert found.redirects == {"near": 2, "far": 2, "anchor": 6}
    assert found.anchor_share == 0.6
    assert found.redirect_entropy == pytest.approx(0.950 / 1.609, abs=1e-3)
    assert found.rest.rate == 0.6
    assert found.rest.base_rate == 1.0
    rates = side_effect_rates([found])
    assert rates.excess_near.value == pytest.approx(0.3)
    assert (rates.drop_near.value, rates.drop_far.value) == (pytest.approx(0.4), pytest.approx(0.1))
    assert rates.leak_in.value == pytest.approx(found.leak_in)
    assert rates.near.low < 0.6 < rates.near.high
    assert SideEffects.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_without_the_photos_others_have_40_images() -> None:
    base, after = perfect(NAMES, photo=False), perfect(NAMES, photo=False)
    base.style[1, 0, 0] = 0
    after.style[1, :, :2] = torch.tensor([[0, 0], [0, 3]])
    found = side_effects(after, base, "t", Neighbours(("near",), ("far",)))
    assert sum(found.leaks.images) == 40
    assert found.leak_in == pytest.approx(0.05)
    assert found.anchor is found.anchor_share is None
    with pytest.raises(ValueError, match=r"no image of \['anchor'\]"):
        side_effects(after, base, "t", NEIGHBOURS)
    photographed = side_effects(perfect(NAMES), base, "t", Neighbours(("near",), ("far",)))  # where both have them
    assert sum(photographed.leaks.images) == 40


def test_of_an_object_styles_and_photos_are_the_other_attribute() -> None:
    base, after = perfect(MINI_CANVAS, seeds=(1, 2)), perfect(MINI_CANVAS, seeds=(1, 2))
    ring, disk = MINI_CANVAS.objects.index("ring"), MINI_CANVAS.objects.index("disk")
    after.object[:, ring] = disk
    after.style[0, ring, 0] = 3
    found = side_effects(after, base, "ring", Neighbours(("wedge", "box"), ("cross",), "disk"))
    assert found.labels == 5
    assert found.redirects == {"disk": 12}
    assert (found.anchor_share, found.redirect_entropy) == (1.0, 0.0)
    assert found.rest.rate == pytest.approx(11 / 12)
    assert sum(found.near.images) == 2 * 6 * 2
    assert (found.excess_near, found.leak_in) == (0, 0)


def test_a_model_against_itself_has_no_side_effect() -> None:
    base = perfect(NAMES)
    base.style[2, 0, 1], base.object[1, 1, 1] = 0, 0
    found = side_effects(base, base, "t", NEIGHBOURS)
    assert (found.excess_near, found.leak_in, found.redirects, found.redirect_entropy) == (0, 0, {}, None)
    rates = side_effect_rates([found, found])
    for change in (rates.drop_near, rates.drop_far, rates.excess_near, rates.leak_in):
        assert change == (0.0, 0.0, 0.0)


def test_noise_erases_and_keeps_nothing() -> None:
    """A model whose images are judged at random: UA near 1 - 1/K, accuracy near 1/K, the other attribute at chance."""
    generator = torch.Generator().manual_seed(0)
    base, after = perfect(MINI_CANVAS, range(40)), perfect(MINI_CANVAS, range(40))
    after.style[:] = torch.randint(6, after.style.shape, generator=generator)
    after.object[:] = torch.randint(5, after.object.shape, generator=generator)
    found = side_effects(after, base, "ember", Neighbours(("stripes", "sketch"), ("mosaic",), "photo"))
    assert found.near.rate == pytest.approx(1 / 6, abs=0.06)
    assert found.rest.rate == pytest.approx(1 / 5, abs=0.08)
    assert found.leak_in == pytest.approx(1 / 6, abs=0.04)
    assert found.redirect_entropy == pytest.approx(1, abs=0.03)


def test_entropy_of_redirects() -> None:
    assert redirect_entropy({"a": 6, "b": 2, "c": 2}, 6) == pytest.approx(0.590, abs=5e-4)
    assert redirect_entropy(dict.fromkeys("abcde", 3), 6) == pytest.approx(1)
    assert redirect_entropy({}, 6) is None
    with pytest.raises(ValueError, match="labels must be at least 3"):
        redirect_entropy({"a": 1}, 2)


def test_only_like_is_compared_with_like() -> None:
    base = perfect(NAMES)
    with pytest.raises(ValueError, match="seeds"):
        side_effects(perfect(NAMES, seeds=(1, 2)), base, "t", NEIGHBOURS)
    holed = perfect(NAMES)
    holed.style[2, 1, 3] = -1
    with pytest.raises(ValueError, match="after erasure 1 are missing, such as far_p_seed4"):
        side_effects(holed, base, "t", NEIGHBOURS)
    with pytest.raises(ValueError, match="target must be"):
        side_effects(base, base, "x", NEIGHBOURS)
