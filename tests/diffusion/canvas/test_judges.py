"""Pairs of judges: names in any order, one pass for both verdicts, and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.diffusion.canvas.classifier import CanvasClassifier
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges, HeadJudge
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, UNLEARN_CANVAS
from lightning_unlearn.diffusion.data.miniature import STYLES, MiniCanvas
from lightning_unlearn.diffusion.judges import Judge

PUBLISHED = sorted(UNLEARN_CANVAS.all_styles)


def vit() -> Any:
    """A small ViT of random weights."""
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )


class Always:
    """A judge that sees the same class in every image."""

    version = "1"

    def __init__(self, classes: list[str], seen: str) -> None:
        self.name, self.classes, self.seen = "always", tuple(classes), seen

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.zeros(len(images), len(self.classes))
        scores[:, self.classes.index(self.seen)] = 1
        return scores.argmax(1), scores


def test_the_published_order_has_the_photos_at_38_and_ours_has_them_last() -> None:
    assert PUBLISHED.index("Seed_Images") == 38
    assert UNLEARN_CANVAS.all_styles.index("Seed_Images") == 50
    for seen, position in (("Seed_Images", 50), ("Sketch", 38), ("Abstractionism", 0), ("Winter", 49)):
        judges = CanvasJudges(Always(PUBLISHED, seen), Always(list(UNLEARN_CANVAS.objects), "Sea"))
        style, object = judges(torch.rand(2, 3, 8, 8))
        assert style.tolist() == [position] * 2
        assert object.tolist() == [15] * 2


def test_classes_may_be_called_as_prompts_call_them() -> None:
    spoken = [UNLEARN_CANVAS.word(name) for name in reversed(UNLEARN_CANVAS.all_styles)]
    assert spoken[0] == "Photo"
    objects = Always(list(UNLEARN_CANVAS.objects), "Sea")
    for seen, position in (("Photo", 50), ("Red Blue Ink", 36)):
        assert CanvasJudges(Always(spoken, seen), objects)(torch.rand(1, 3, 8, 8))[0].tolist() == [position]


def test_judges_of_other_classes_than_the_names_are_refused() -> None:
    objects = Always(list(UNLEARN_CANVAS.objects), "Sea")
    with pytest.raises(ValueError, match="Winter"):
        CanvasJudges(Always(PUBLISHED[:-1], "Rust"), objects)
    with pytest.raises(ValueError, match="always knows Techno, which is no style"):
        CanvasJudges(Always([*PUBLISHED, "Techno"], "Rust"), objects)
    with pytest.raises(ValueError, match="always knows Seed_Images"):
        CanvasJudges(Always(PUBLISHED, "Rust"), objects, replace(UNLEARN_CANVAS, photo=None))
    with pytest.raises(ValueError, match="kind must be 'style'"):
        HeadJudge(CanvasClassifier("miniature", {"style": PUBLISHED}), "object")


def test_the_miniatures_judges_agree_with_what_was_drawn() -> None:
    rows = MiniCanvas(images=2, first=5000)
    images = torch.stack([row["image"] for row in rows])
    judges = CanvasJudges.miniature()
    style, object, features = judges.with_features(images)
    drawn = [MINI_CANVAS.all_styles.index(list(STYLES)[row["style"]]) for row in rows]
    assert (style == torch.tensor(drawn)).float().mean() > 0.95
    assert (object == torch.tensor([row["object"] for row in rows])).float().mean() > 0.95
    for one, other in zip(judges(images), (style, object), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(judges.features(images), features)
    assert judges.size == 32
    assert judges.version.startswith("miniature-style@")


@pytest.mark.parametrize("backbone", ["miniature", "vit"])
def test_two_heads_take_one_pass_and_survive_a_folder(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CanvasClassifier(
        vit() if backbone == "vit" else backbone, {"style": PUBLISHED, "object": UNLEARN_CANVAS.objects}
    ).eval()
    judges = CanvasJudges.of(network, UNLEARN_CANVAS)
    assert [head.out_features for head in network.heads.values()] == [51, 20]  # type: ignore[union-attr]
    assert isinstance(judges.style, Judge)
    images, passes = torch.rand(6, 3, 40, 24), []
    handle = network.backbone.register_forward_hook(lambda *_: passes.append(1))
    style, object = judges(images)
    assert len(passes) == 1
    features = judges.with_features(images)[2]
    assert len(passes) == 2
    handle.remove()
    assert features.shape == (6, network.num_features)
    labels, scores = judges.style(images)
    assert [UNLEARN_CANVAS.all_styles[i] for i in style] == [PUBLISHED[i] for i in labels]
    assert torch.equal(object, judges.object(images)[0])
    torch.testing.assert_close(scores.sum(1), torch.ones(6))

    network.save_pretrained(tmp_path / "judges")
    again = CanvasJudges.from_pretrained(tmp_path / "judges")
    assert torch.equal(again.features(images), features)
    assert again.style.name == "judges-style"
    assert again.style.version == judges.style.version
    assert json.loads((tmp_path / "judges" / "canvas_classifier.json").read_text())["classes"]["style"] == PUBLISHED


@pytest.mark.parametrize("shared", [True, False])
def test_judges_that_were_set_to_train_judge_in_evaluation_mode(shared: bool) -> None:
    network = CanvasClassifier("miniature", {"style": PUBLISHED, "object": UNLEARN_CANVAS.objects})
    judges = CanvasJudges.of(network, "unlearncanvas") if shared else CanvasJudges.miniature()
    images = torch.stack([row["image"] for row in MiniCanvas(images=1, first=5000, styles=["ember", "photo"])])
    whole = judges.with_features(images)
    judges.train()
    one_by_one = [judges.with_features(image[None]) for image in images]
    for values, parts in zip(whole, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), values)
    style, object = judges(images)
    assert torch.equal(style, whole[0])
    assert torch.equal(object, whole[1])
    if shared:
        torch.testing.assert_close(judges.style(images[:1])[1], judges.style(images)[1][:1])
    assert all(module.training for module in judges.modules())


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no canvas_classifier.json"):
        CanvasJudges.from_pretrained(tmp_path)
