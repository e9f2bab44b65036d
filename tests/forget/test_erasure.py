"""Prompts, methods, judges and rules of requests to erase a concept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.audit.hashes import content_hash
from lightning_unlearn.forget import erasure_judges
from lightning_unlearn.forget.erasure_images import draw_pictures, thumbnail
from lightning_unlearn.forget.erasure_judges import find_judge, seen_by
from lightning_unlearn.forget.erasure_methods import METHODS, recipe
from lightning_unlearn.forget.erasure_prompts import ErasurePrompts, Picture, miniature_prompts, own_prompts
from lightning_unlearn.forget.erasure_verdict import ErasureNumbers, conclude_erasure


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        (ErasureNumbers(), "no verdict"),
        (ErasureNumbers(effects={"a": 0.2, "b": 0.4}), "nothing to erase"),
        (ErasureNumbers(effects={"a": 0.2, "b": 0.6}), "no verdict"),
        (ErasureNumbers(0.4, 0.0, 1.0), "nothing to erase"),
        (ErasureNumbers(1.0, 0.0, 0.7), "damaged"),
        (ErasureNumbers(1.0, 0.6, 1.0), "not forgotten"),
        (ErasureNumbers(1.0, 0.2, 1.0), "partly forgotten"),
        (ErasureNumbers(1.0, 0.1, 0.8), "no longer drawn"),
        (ErasureNumbers(1.0, 0.0, 1.0, 0.2), "suppressed but recoverable"),
        (ErasureNumbers(1.0, 0.0, 1.0, 0.1), "no trace found"),
    ],
)
def test_the_verdict_follows_the_stated_rules(numbers: ErasureNumbers, word: str) -> None:
    assert conclude_erasure(numbers).word == word


def test_evidence_has_prompts_that_were_not_trained_on() -> None:
    asked = own_prompts(["Van Gogh", "Vincent"], "art", ["a dog"], None, images=2, seed=7)
    trained = {row["prompt"] for row in asked.forget}
    drawn = [picture.prompt for picture in asked.pictures if picture.role == "forget"]
    assert len(drawn) == 8
    assert len(set(drawn) - trained) == 3
    assert {"prompt": "a house, Vincent", "anchor": "a house, art"} in asked.forget
    assert [picture.seed for picture in asked.pictures] == list(range(7, 16))
    assert not asked.notes
    assert own_prompts(["art"], "", ["a milk carton"], None, images=1, seed=0).keep == ["a milk carton"]
    assert [row["seed"] for row in asked.attacked] == [7, 9, 11, 13]


def test_by_default_everyday_objects_are_kept_but_not_the_concept() -> None:
    asked = own_prompts(["dog"], "", None, None, images=1, seed=0)
    assert len(asked.keep) > 250
    assert not [prompt for prompt in asked.keep if "dog" in prompt.split()]
    assert 9 <= len(asked.of("keep")) <= 12
    assert {"prompt": "a house, dog", "anchor": "a house"} in asked.forget
    assert len(asked.notes) == 1


def test_the_miniature_knows_its_concepts_by_any_of_their_names() -> None:
    for words in (["negative"], ["xray", "inverted"]):
        asked = miniature_prompts(words, images=3, seed=0)
        assert asked is not None
        assert asked.words == ["negative", "inverted", "xray"]
        assert (len(asked.of("forget")), len(asked.of("keep"))) == (15, 25)
        assert sum(asked.pictures[place].shown for place in asked.of("forget")) == 5
        assert asked.judges == ["miniature-style", "miniature-object"]
    assert miniature_prompts(["xray", "ring"], images=1, seed=0) is None
    assert miniature_prompts(["van gogh"], images=1, seed=0) is None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_setting_for_the_miniature(method: str) -> None:
    paper, small = recipe(method), recipe(method, miniature=True)
    assert paper.name == small.name
    assert paper.trainable == small.trainable
    assert bool(paper.steps) == bool(small.steps) == bool(paper.passes(paper.steps))
    assert bool(paper.retain_batch_size) == bool(small.retain_batch_size)


class Brightness:
    """A judge that calls an image light or dark."""

    name, version, classes = "brightness", "1", ("dark", "light")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        light = images.mean((1, 2, 3))
        return (light > 0.5).long(), torch.stack([1 - light, light], 1)


def pictures(*roles: str) -> ErasurePrompts:
    drawn = [Picture(role, f"{role} {place}", place, role) for place, role in enumerate(roles)]
    return ErasurePrompts(["light"], [{"prompt": "light", "anchor": ""}], ["dark"], drawn, [])


def test_a_judge_counts_the_concept_and_what_stayed() -> None:
    before = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.2]).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    after = torch.tensor([0.1, 0.9, 0.2, 0.1, 0.6]).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    asked = pictures("forget", "forget", "forget", "keep", "keep")
    seen = seen_by(Brightness(), ["light"], asked, before, after)
    assert seen.shares == (1.0, pytest.approx(1 / 3))
    assert seen.kept == [True, False]
    assert seen_by(Brightness(), None, asked, before, after).shares is None


def test_a_clip_model_compares_the_concept_with_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_judges, "CLIPJudge", lambda model, classes: (model, classes))
    judge: Any = find_judge("clip:openai/clip", pictures("forget", "keep", "keep"))
    classes = {"light": "a picture, light", "a picture": "a picture", "keep 1": "keep 1", "keep 2": "keep 2"}
    assert judge == ("openai/clip", classes)


class Draws:
    """A model that draws the number of the seed, and counts its images."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def generate(self, prompts: list[str], seeds: list[int], batch_size: int) -> Tensor:
        self.drawn += seeds
        return torch.tensor(seeds).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 255


def test_images_that_are_there_are_not_drawn_again(tmp_path: Path) -> None:
    wanted, model = pictures(*["keep"] * 5).pictures, Draws()
    module: Any = model
    first = draw_pictures(module, wanted, tmp_path, "Images", batch_size=2)
    assert torch.equal(first[:, 0, 0, 0] * 255, torch.arange(5.0))
    (tmp_path / "00003.png").unlink()
    assert torch.equal(draw_pictures(module, wanted, tmp_path, "Images", batch_size=2), first)
    assert model.drawn == [0, 1, 2, 3, 4, 2, 3]


def test_large_images_are_small_on_the_page() -> None:
    assert thumbnail(torch.rand(3, 512, 384)).shape == (3, 160, 120)
    small = torch.rand(3, 32, 32)
    assert thumbnail(small) is small


def test_the_hash_of_a_pipeline_tells_its_parts_apart(tiny_sd: Path) -> None:
    tensors = content_hash(tiny_sd).tensors
    assert {tensor.name.partition("/")[0] for tensor in tensors} == {"unet", "vae", "text_encoder"}
    part = content_hash(tiny_sd / "unet")
    assert {f"unet/{tensor.name}" for tensor in part.tensors} <= {tensor.name for tensor in tensors}
