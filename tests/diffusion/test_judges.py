"""Judges of images that are not in the package."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lightning_unlearn import PromptAttack
from lightning_unlearn.diffusion.judges import (
    NUDITY,
    CLIPJudge,
    Judge,
    NudeNetJudge,
    TransformersJudge,
    class_numbers,
    judge_named,
)


class Detector:
    """Stands for nudenet's: what it finds is written in the first pixels."""

    made = 0
    seen: ClassVar[list[Any]] = []
    finds: ClassVar[list[list[dict[str, Any]]]] = []

    def __init__(self, model_path: str | None = None, providers: Any = None, inference_resolution: int = 320) -> None:
        type(self).made += 1

    def detect(self, image: Any) -> list[dict[str, Any]]:
        self.seen.append(image)
        return self.finds[len(self.seen) - 1]


@pytest.fixture
def nudenet(monkeypatch: pytest.MonkeyPatch) -> type[Detector]:
    module: Any = ModuleType("nudenet")
    module.NudeDetector = Detector
    monkeypatch.setitem(sys.modules, "nudenet", module)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.4.2")
    monkeypatch.setattr(Detector, "made", 0)
    monkeypatch.setattr(Detector, "seen", [])
    return Detector


def part(name: str, score: float) -> dict[str, Any]:
    return {"class": f"{name}_EXPOSED", "score": score, "box": [0, 0, 1, 1]}


FINDS = [
    [part("FEET", 0.6)],
    [part("BUTTOCKS", 0.47)],
    [part("BUTTOCKS", 0.5), part("FACE", 0.9)],
    [],
    [{"class": "BUTTOCKS_COVERED", "score": 0.99, "box": [0, 0, 1, 1]}],
]


@pytest.mark.parametrize(("preset", "nude"), [("mu_attack", [1, 0, 1, 0, 0]), ("eval_unlearn", [0, 1, 1, 0, 0])])
def test_what_counts_as_nudity_is_the_papers_choice(preset: str, nude: list[int], nudenet: Any) -> None:
    nudenet.finds = FINDS
    judge = NudeNetJudge(preset)
    assert isinstance(judge, Judge)
    labels, scores = judge(torch.rand(5, 3, 8, 8))
    assert labels.tolist() == nude
    best = [0.6 if preset == "mu_attack" else 0.0, 0.47, 0.5, 0.0, 0.0]
    torch.testing.assert_close(scores, torch.tensor([[1 - p, p] for p in best]))
    assert judge.version == f"3.4.2/320n@320/{preset}>={NUDITY[preset][1]:g}"


def test_the_presets_are_nine_and_six_labels() -> None:
    assert [len(labels) for labels, _ in NUDITY.values()] == [9, 6]
    nine, six = (set(labels) for labels, _ in NUDITY.values())
    assert nine - six == {"FEET_EXPOSED", "BELLY_EXPOSED", "ARMPITS_EXPOSED"}


def test_labels_and_threshold_of_ones_own(nudenet: Any) -> None:
    nudenet.finds = FINDS
    judge = NudeNetJudge(["FEET_EXPOSED"], threshold=0.61)
    assert judge(torch.rand(1, 3, 8, 8))[0].tolist() == [0]
    assert judge.version.endswith("FEET_EXPOSED>=0.61")


def test_the_detector_is_made_once_and_sees_eight_bits_blue_first(nudenet: Any) -> None:
    nudenet.finds = [[]] * 4
    judge = NudeNetJudge()
    images = torch.zeros(2, 3, 4, 6)
    images[:, 0] = 1.0
    judge(images)
    judge(images)
    assert nudenet.made == 1
    assert len(nudenet.seen) == 4
    image = nudenet.seen[0]
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [0, 0, 255]


def test_errors_of_the_detector(nudenet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for labels in ("nsfw", [], ["FEET"]):
        with pytest.raises(ValueError, match="labels must be one of"):
            NudeNetJudge(labels)
    with pytest.raises(ValueError, match="threshold must be in"):
        NudeNetJudge(threshold=1.5)
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)"):
        NudeNetJudge()(torch.rand(3, 8, 8))
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ImportError, match="pip install nudenet"):
        NudeNetJudge()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small vision transformer of random weights and three classes."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("tiny_vit") / "artists"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=3,
        id2label={0: "monet", 1: "vincent-van-gogh", 2: "picasso"},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_resize": true, "size": {"height": 16, "width": 16}, '
        '"do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true, '
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}'
    )
    return folder


def test_a_classifier_of_transformers_judges(classifier: Path) -> None:
    judge = TransformersJudge(str(classifier))
    assert isinstance(judge, Judge)
    assert judge.name == "artists"
    assert judge.classes == ("monet", "vincent-van-gogh", "picasso")
    images = (torch.rand(4, 3, 16, 16) * 255).round() / 255
    labels, scores = judge(images)
    mean, std = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.25, 0.5])
    inputs = (images - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        wanted = judge.classifier(pixel_values=inputs).logits.softmax(1)
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, wanted.argmax(1))
    assert judge(torch.rand(1, 3, 40, 24))[1].shape == (1, 3)  # resized


def test_the_version_is_of_the_weights(classifier: Path) -> None:
    judge = TransformersJudge(str(classifier))
    assert judge.version == TransformersJudge(str(classifier)).version
    with torch.no_grad():
        judge.classifier.classifier.bias[0] += 1
    judge.classifier.save_pretrained(classifier.parent / "other")
    (classifier.parent / "other" / "preprocessor_config.json").write_bytes(
        (classifier / "preprocessor_config.json").read_bytes()
    )
    assert judge.version != TransformersJudge(str(classifier.parent / "other")).version


def test_pickled_weights_are_not_read(classifier: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((classifier / name).read_bytes())
    torch.save(load_file(classifier / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TransformersJudge(str(tmp_path))


def test_judges_have_names(classifier: Path, nudenet: Any) -> None:
    assert judge_named("miniature-object").name == "miniature-object"
    assert "/eval_unlearn>" in judge_named("nudenet:eval_unlearn").version
    assert "/mu_attack>" in judge_named("nudenet").version
    assert judge_named(str(classifier)).name == "artists"
    with pytest.raises(ValueError, match="judge='nobody/nothing' is none of"):
        judge_named("nobody/nothing")


def convnet(folder: Path, names: list[str] | None, **options: Any) -> Path:
    """A convolutional classifier, whose config says nothing of its classes where no names are given."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    named = {"num_labels": 4} if names is None else {"id2label": dict(enumerate(names))}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", **named, **options)
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


def test_classes_of_imagenet_are_found_by_their_synonyms(tmp_path: Path) -> None:
    """Two of its thousand classes are called "crane", a bird and a machine."""
    names = ["tench, Tinca tinca", "church, church building", "crane", "crane", "altar", "Van_Gogh"]
    judge = TransformersJudge(str(convnet(tmp_path / "imagenet", names)))
    assert judge.classes == tuple(names)
    for concept, label in {
        "tench, Tinca tinca": 0,
        "Tinca tinca": 0,
        "church": 1,
        "Church Building": 1,
        "3": 3,
        "van gogh": 5,
    }.items():
        assert class_numbers(judge, [concept]) == [label]
    attack = PromptAttack(judge, ["2", "3"], top=2)
    shown, scores = attack.shows(torch.rand(3, 3, 32, 32))
    _, wanted = judge(torch.rand(3, 3, 32, 32))
    assert len(shown) == len(scores) == len(wanted)
    PromptAttack(judge, "church")
    with pytest.raises(ValueError, match=r"'crane' is the name of several classes of imagenet: 2, 3\..*such as '2'"):
        PromptAttack(judge, "crane")
    with pytest.raises(ValueError, match=r"'churhc' is no class of imagenet; the nearest names are \['church'"):
        PromptAttack(judge, "churhc")
    with pytest.raises(ValueError, match="no class of imagenet"):
        PromptAttack(judge, "6")
    with pytest.raises(ValueError, match="concept is an empty list"):
        PromptAttack(judge, [])


def test_the_score_is_that_of_the_class_with_the_name(tmp_path: Path) -> None:
    judge = TransformersJudge(str(convnet(tmp_path / "j", ["a, b", "c", "c"])))
    images = torch.rand(3, 3, 32, 32)
    scores = judge(images)[1]
    for concept, label in {"b": 0, "2": 2}.items():
        assert PromptAttack(judge, concept).shows(images)[1] == pytest.approx(scores[:, label].tolist(), abs=1e-6)


def test_a_classifier_without_names_is_asked_by_number(tmp_path: Path) -> None:
    judge = TransformersJudge(str(convnet(tmp_path / "bare", None)))
    assert judge.classes == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert class_numbers(judge, ["LABEL_2", "1"]) == [2, 1]
    with pytest.raises(ValueError, match=r"its classes have no names: put id2label into its config\.json"):
        PromptAttack(judge, "church")


def test_scores_of_several_labels_are_of_each_on_its_own(tmp_path: Path) -> None:
    folder = convnet(tmp_path / "several", ["a", "b", "c"], problem_type="multi_label_classification")
    judge = TransformersJudge(str(folder))
    labels, scores = judge(torch.rand(5, 3, 32, 32))
    assert ((scores.sum(1) - 1).abs() > 1e-3).all()
    assert torch.equal(labels, scores.argmax(1))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    from tests.diffusion.tiny import write_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    words |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=words, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_clip_judges_classes_without_a_classifier(clip: Path) -> None:
    from lightning_unlearn import clip_similarity

    judge = CLIPJudge(str(clip), {"gogh": "art by van gogh", "photo": "a photo", "other": "the red square"})
    assert isinstance(judge, Judge)
    images = torch.rand(4, 3, 20, 16)
    labels, scores = judge(images)
    similar = [clip_similarity(judge.classifier, judge._processor, images, [text] * 4) for text in judge.prompts]
    scale = judge.classifier.logit_scale.exp()
    torch.testing.assert_close(scores, (scale * torch.stack(similar, 1)).softmax(1), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, scores.argmax(1))
    named = judge_named(f"clip:{clip}:van gogh,red square")
    assert named.classes == ("van gogh", "red square")
    assert named.version != judge.version
    assert PromptAttack(named, "Van Gogh").concepts == ["Van Gogh"]
    for classes, template in ((["one"], "a {}"), (["one", "two"], "a photo")):
        with pytest.raises(ValueError, match="compares two classes or more"):
            CLIPJudge(str(clip), classes, template)
    with pytest.raises(ValueError, match="names no model or no classes"):
        judge_named("clip:dog,cat")


def test_models_without_a_classifier_are_refused(clip: Path, tmp_path: Path) -> None:
    """transformers would put one of random weights on them, with a line in the log."""
    with pytest.raises(ValueError, match=r"would be random.*CLIPJudge makes a judge"):
        TransformersJudge(str(clip))
    with pytest.raises(ValueError, match="it has one output"):
        TransformersJudge(str(convnet(tmp_path / "one", ["score"])))
