"""Questions beyond the protocol on the miniature: families of prompts, attention, inversion, further requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import LitTextToImage, MiniatureJudge
from lightning_unlearn.benchmarks import inversion
from lightning_unlearn.benchmarks.beyond import (
    attention_reading,
    draw_families,
    family_counts,
    miniature_neighbours,
    visual_neighbours,
)
from lightning_unlearn.benchmarks.erasers import ERASERS
from lightning_unlearn.benchmarks.miniature import DRAW, erase
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.family_scores import family_rates
from lightning_unlearn.diffusion.canvas.neighbours import Neighbours
from lightning_unlearn.diffusion.data.miniature import OBJECTS, miniature_pipeline
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from tests.diffusion.tiny import same, weights

UCE = next(eraser for eraser in ERASERS if eraser.name == "UCE")


@pytest.fixture(scope="module")
def base() -> LitTextToImage:
    return LitTextToImage(str(miniature_pipeline())).eval()


def test_counts_of_a_family_do_not_depend_on_the_others(base: LitTextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAW, "steps", 8)
    alone = draw_families(base, "ember", families=["name"], seeds=[188])
    monkeypatch.setitem(DRAW, "batch_size", 3)
    beside = draw_families(base, "ember", families=["superclass", "name"], seeds=[188])
    assert list(beside) == ["name", "superclass"]
    assert beside["name"] == alone["name"]
    assert sum(alone["name"]["shown"]) >= 4
    assert len(beside["superclass"]["shown"]) == len(OBJECTS)
    rates = family_rates([family_counts(beside, beside, seeds=1)])
    assert all(rate.change == (0.0, 0.0, 0.0) for rate in rates.values())
    with pytest.raises(ValueError, match="are not the same"):
        family_counts(alone, beside, seeds=1)


def test_neighbours_of_the_shipped_miniature(base: LitTextToImage) -> None:
    assert miniature_neighbours(base, "ring") == Neighbours(("wedge", "box"), ("cross",), "disk")
    assert miniature_neighbours(base, "negative") == Neighbours(("sketch", "stripes"), ("mosaic",), "photo")
    assert visual_neighbours("ring").near[0] != "disk"  # its anchor
    with pytest.raises(ValueError, match="target must be 'disk'"):
        visual_neighbours("ember")


def test_erasing_fewer_names_is_another_edit_and_a_pair_is_one_too(base: LitTextToImage) -> None:
    edited = [erase(UCE, "ember", 0, names=names)[0] for names in (None, 3, 1)]
    assert same(edited[0], edited[1])
    assert not same(edited[1], edited[2])
    pair, _ = erase(UCE, ("ember", "ring"), 0, names=1)
    moved = {name for name, value in weights(pair).items() if not torch.equal(value, weights(base)[name])}
    assert moved == {f"unet.{name}.weight" for name in kv_layers(pair.unet)}


def test_a_run_goes_on_from_a_pipeline(tmp_path: Path) -> None:
    first, _ = erase(UCE, "ember", 0, names=1)
    first.save_pretrained(tmp_path)
    second, _ = erase(UCE, "ring", 0, names=1, pipeline=tmp_path)
    from_the_start, _ = erase(UCE, "ring", 0, names=1)
    assert not same(second, from_the_start)
    assert not same(second, first)


def test_attention_of_a_model_against_itself(base: LitTextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAW, "steps", 1)
    change = attention_reading(base, base, "ember", [5, 5, 5, 5, 5])
    assert (change.spread, change.area50, change.mass, change.correlation) == (0.0, 0.0, 0.0, None)


def test_inversion_without_updates_asks_by_name(base: LitTextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learned word is the name then, so what it shows is what the captions show."""
    monkeypatch.setitem(DRAW, "steps", 3)
    before = weights(base)
    found = inversion.inversion_rates(base, base, "ember", control=base, images=3, steps=0)
    c = concept("ember")
    texts = inversion._captions(c, 3, seed=0)
    assert all("ember" in text.split() and not set(c.words[1:]) & set(text.split()) for text in texts)
    drawn = base.generate(texts, [inversion._JUDGED + i for i in range(3)], **DRAW)
    judge = MiniatureJudge("style")
    shown = int((judge(drawn)[0] == judge.classes.index("ember")).sum())
    assert found == {"inversion": [shown, 3], "inversion_control": [shown, 3]}
    assert all(torch.equal(value, before[name]) for name, value in weights(base).items())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["negative", "ring"])
def test_uce_on_one_name_erases_the_others_of_the_shipped_miniature(base: LitTextToImage, target: str) -> None:
    """Its text encoder has merged the names: one that is held back does not test methods that edit keys and values."""
    module, _ = erase(UCE, target, 0, names=1)
    options: dict[str, Any] = {"families": ["name", "variant"], "seeds": [188]}
    counts = family_counts(draw_families(module, target, **options), draw_families(base, target, **options), seeds=1)
    rates = family_rates([counts])
    assert rates["variant"].base.value >= 0.8
    assert rates["name"].ua >= 0.8
    assert rates["variant"].ua >= 0.8
