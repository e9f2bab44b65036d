"""Neighbours of concepts. The figures are those of the miniature that the package ships."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS
from lightning_unlearn.diffusion.canvas.neighbours import (
    Neighbours,
    concept_similarities,
    mask_overlaps,
    miniature_prompts,
    ranked_neighbours,
    read_neighbours,
)
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline, shape
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import encode, tokenize

MEASURED = {
    "disk": "box .18 cross .09 wedge -.38 ring -.48",
    "box": "disk .18 cross -.14 ring -.16 wedge -.74",
    "wedge": "cross .16 ring -.11 disk -.38 box -.74",
    "cross": "wedge .16 disk .09 box -.14 ring -.76",
    "ring": "wedge -.11 box -.16 disk -.48 cross -.76",
    "photo": "mosaic .32 sketch -.27 negative -.28 stripes -.30 ember -.39",
    "stripes": "ember -.03 negative -.16 sketch -.24 mosaic -.25 photo -.30",
    "negative": "sketch -.11 stripes -.16 ember -.21 photo -.28 mosaic -.36",
    "mosaic": "photo .32 stripes -.25 sketch -.30 negative -.36 ember -.39",
    "ember": "stripes -.03 sketch -.03 negative -.21 photo -.39 mosaic -.39",
    "sketch": "ember -.03 negative -.11 stripes -.24 photo -.27 mosaic -.30",
}
"""Cosines of the shipped miniature, the nearest first."""


@pytest.fixture(scope="module")
def base() -> LitTextToImage:
    return LitTextToImage(str(miniature_pipeline()))


@pytest.mark.parametrize("kind", ["style", "object"])
def test_measured_ranking_of_the_shipped_miniature(base: LitTextToImage, kind: Any) -> None:
    names = list(STYLES if kind == "style" else OBJECTS)
    found = concept_similarities(base, miniature_prompts(kind))
    torch.testing.assert_close(found.diagonal(), torch.ones(len(names), dtype=torch.float64))
    for target in names:
        pairs = MEASURED[target].split()
        others, values = pairs[::2], [float(value) for value in pairs[1::2]]
        row = found[names.index(target)]
        for other, value in zip(others, values, strict=True):
            assert row[names.index(other)].item() == pytest.approx(value, abs=0.0051), (target, other)
        chosen = ranked_neighbours(found, names, target, anchor=concept(target).anchor)
        anchor = concept(target).anchor
        assert set(chosen.near) == set(others[:2]) - {anchor}
        assert set(chosen.far) == set(others[-2:]) - {anchor}
        assert anchor not in chosen.near + chosen.far


def test_names_of_a_concept_have_merged_in_the_shipped_miniature(base: LitTextToImage) -> None:
    """Held-back synonyms are no test there of a method that edits keys and values."""
    for kind, names in (("object", OBJECTS), ("style", STYLES)):
        single = {word: [concept(name).alone(word)] for name, words in names.items() for word in words}
        found = concept_similarities(base, single)
        same = torch.arange(len(single)) // 3
        together = same[:, None] == same
        assert found[together].min() >= 0.91, kind
        assert found[~together].max() <= 0.345, kind


def test_similarities_are_cosines_of_keys_and_values(tiny_sd: Path) -> None:
    """Against the images under every layer, one by one."""
    module = LitTextToImage(str(tiny_sd))
    prompts = {
        "circle": ["a red circle", "a circle"],
        "square": ["a green square", "a square"],
        "art": ["art", "a photo"],
    }
    vectors = []
    with torch.no_grad():
        for texts in prompts.values():
            states = encode(module.eval(), tokenize(module.tokenizer, texts)["input_ids"])
            parts = [layer(states).mean(0).flatten() for layer in kv_layers(module.unet).values()]
            vectors.append(torch.cat(parts))
    centred = torch.stack(vectors) - torch.stack(vectors).mean(0)
    wanted = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=2)
    module.train()
    found = concept_similarities(module, prompts)
    torch.testing.assert_close(found, wanted.double(), atol=1e-4, rtol=0)
    assert module.unet.training
    shuffled = concept_similarities(module, dict(reversed(prompts.items())))
    torch.testing.assert_close(shuffled.flip(0, 1), found)


def test_overlap_of_the_shapes() -> None:
    order, overlaps = list(OBJECTS), mask_overlaps(1024)
    assert overlaps[order.index("ring"), order.index("disk")].item() == pytest.approx(0.70, abs=2e-3)
    theta = math.acos(0.9)
    common = math.pi - 4 * (theta - math.sin(theta) * math.cos(theta))
    assert common == pytest.approx(2.907, abs=1e-3)
    union = math.pi + 3.24 - common
    assert union == pytest.approx(3.475, abs=1e-3)
    assert overlaps[order.index("box"), order.index("disk")].item() == pytest.approx(common / union, abs=2e-3)
    assert common / union == pytest.approx(0.837, abs=1e-3)
    areas = {name: 4 * shape(name, 1024).double().mean().item() for name in OBJECTS}
    assert areas == pytest.approx(
        {"disk": math.pi, "box": 3.24, "wedge": 1.8, "cross": 2.3616, "ring": 0.7 * math.pi}, abs=0.01
    )
    assert torch.equal(overlaps, overlaps.T)
    assert ranked_neighbours(overlaps, order, "disk", anchor="box") == Neighbours(("cross",), ("ring", "wedge"), "box")


def test_of_equals_the_first_name_is_nearer() -> None:
    for names in (["t", "c", "a", "b", "d"], ["d", "b", "t", "a", "c"]):
        assert ranked_neighbours(torch.ones(5, 5), names, "t") == Neighbours(("a", "b"), ("c", "d"))
    with pytest.raises(ValueError, match="3 near and 3 far concepts are more than the 4 others of t"):
        ranked_neighbours(torch.ones(5, 5), list("tabcd"), "t", count=3)
    with pytest.raises(ValueError, match="target must be"):
        ranked_neighbours(torch.ones(2, 2), ["a", "b"], "c")


def test_groups_of_neighbours_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "groups.json"
    known = UNLEARN_CANVAS.styles
    file.write_text(json.dumps({"Monet": {"near": ["Van_Gogh"], "far": ["Bricks"], "anchor": "Sketch"}}))
    assert read_neighbours(file, known) == {"Monet": Neighbours(("Van_Gogh",), ("Bricks",), "Sketch")}
    for group, message in (
        ({"near": ["Van Gogh"], "far": ["Bricks"]}, "there is no 'Van Gogh'"),
        ({"near": ["Van_Gogh"]}, "needs lists of names under 'near' and 'far'"),
        ({"near": ["Monet"], "far": ["Bricks"]}, "or is its own"),
    ):
        file.write_text(json.dumps({"Monet": group}))
        with pytest.raises(ValueError, match=message):
            read_neighbours(file, known)


def test_a_concept_without_prompts_is_refused(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    with pytest.raises(ValueError, match="two concepts or more"):
        concept_similarities(module, {"a": ["a circle"]})
    with pytest.raises(ValueError, match="compared by their prompts"):
        concept_similarities(module, {"a": ["a circle"], "b": []})
