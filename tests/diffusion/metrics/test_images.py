"""Distances of sets of images, and how images fit their prompts."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_unlearn.diffusion.metrics.clip import CLIPScore, clip_similarity, load_clip
from lightning_unlearn.diffusion.metrics.features import PenultimateFeatures
from lightning_unlearn.diffusion.metrics.fid import FID, KID
from lightning_unlearn.functional.diffusion.distances import feature_distance, frechet_distance
from tests.diffusion.tiny import LENGTH, write_tokenizer

SQUARE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
SHIFT = torch.tensor([3.0, 4.0])


class Identity(nn.Module):
    num_features = 2

    def forward(self, x: Tensor) -> Tensor:
        return x


def measured(metric: Any, real: Tensor, generated: Tensor) -> float:
    metric.update(real, real=True)
    metric.update(generated, real=False)
    found = metric.compute()
    return float(found[0] if isinstance(found, tuple) else found)


def normal(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("mean", "one", "two", "distance"),
    [
        ([3.0, 4.0], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], 25.0),
        ([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 4.0]], 2.0),
        ([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]], [[2.0, -1.0], [-1.0, 2.0]], 8 - 4 * math.sqrt(3)),
        ([0.0, 0.0], [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 9.0]], 10.0),  # without full rank
    ],
)
def test_the_frechet_distance_of_normal_distributions(mean: Any, one: Any, two: Any, distance: float) -> None:
    found = frechet_distance(torch.zeros(2), torch.tensor(one), torch.tensor(mean), torch.tensor(two))
    assert found.item() == pytest.approx(distance, abs=1e-9)


def test_fid_of_the_unit_square_shifted_and_doubled() -> None:
    assert measured(FID(Identity()), SQUARE, SQUARE + SHIFT) == pytest.approx(25.0)
    assert measured(FID(Identity()), SQUARE, 2 * SQUARE) == pytest.approx(0.5 + 2 / 3)


def test_kid_of_the_unit_square_is_unbiased_and_so_negative_for_the_same_set() -> None:
    assert measured(KID(Identity(), 1, 4), SQUARE, SQUARE + SHIFT) == pytest.approx(5109.5208)
    assert measured(KID(Identity(), 1, 4), SQUARE, SQUARE) == pytest.approx(-1.0729167)


def test_fid_is_a_distance_of_sets() -> None:
    x, y = normal(40, 0), normal(30, 1) * 2 + 1
    whole = measured(FID(Identity()), x, y)
    assert measured(FID(Identity()), x, x) == pytest.approx(0.0, abs=1e-6)
    assert measured(FID(Identity()), y, x) == pytest.approx(whole, rel=1e-5)
    assert measured(FID(Identity()), x.flip(0), y.roll(3, 0)) == pytest.approx(whole, rel=1e-5)
    expected = frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert whole == pytest.approx(expected.item(), rel=1e-5)
    assert whole == pytest.approx(measured(FrechetInceptionDistance(Identity()), x, y), rel=1e-5)
    chunked = FID(Identity())
    for part in x.split(7):
        chunked.update(part, real=True)
    for part in y.split(11):
        chunked.update(part, real=False)
    assert float(chunked.compute()) == pytest.approx(whole, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("metric", [FID, KID])
def test_one_reference_serves_many_models(metric: Any) -> None:
    options = {"subsets": 2, "subset_size": 4} if metric is KID else {}
    kept, fresh = (metric(Identity(), reset_real_features=kind, **options) for kind in (False, True))
    first = measured(kept, SQUARE, SQUARE + SHIFT)
    kept.reset()
    with pytest.raises(ValueError, match="4 real and 0 generated"):
        kept.compute()
    kept.update(SQUARE + SHIFT, real=False)
    found = kept.compute()
    assert float(found[0] if metric is KID else found) == first
    measured(fresh, SQUARE, SQUARE)
    fresh.reset()
    with pytest.raises(ValueError, match="0 real and 0 generated"):
        fresh.compute()


def test_an_error_leaves_the_counts_of_the_process() -> None:
    """In a process group, torchmetrics gathers the counts before it computes."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    for metric in (FID(Identity()), KID(Identity(), 1, 4)):
        metric.update(SQUARE, real=True)
        with pytest.raises(ValueError, match="4 real and 0 generated"):
            metric.compute()
        metric.update(SQUARE + SHIFT, real=False)
        assert (metric.compute()[0] if isinstance(metric, KID) else metric.compute()) > 1


def test_too_few_images_are_an_error_or_a_warning() -> None:
    with pytest.raises(ValueError, match="1 real and 4 generated"):
        measured(FID(Identity()), SQUARE[:1], SQUARE)
    with pytest.warns(UserWarning, match="2 real and 4 generated images is biased: it needs more than the 2 features"):
        measured(FID(Identity()), SQUARE[:2], SQUARE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(FID(Identity()), SQUARE[:3], SQUARE)
    with pytest.raises(ValueError, match="subset_size of 3 or less"):
        measured(KID(Identity(), 1, 4), SQUARE[:3], SQUARE)
    for options in ({"subsets": 0}, {"subset_size": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            KID(Identity(), **options)


def test_the_subsets_of_kid_have_a_seed_of_their_own() -> None:
    x, y = normal(40, 0), normal(40, 1)
    state = torch.get_rng_state()
    zero, again, one = (measured(KID(Identity(), 3, 10, seed=seed), x, y) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert zero == again != one


def test_images_with_nan_are_refused() -> None:
    for metric in (FID(Identity()), KID(Identity())):
        with pytest.raises(ValueError, match="1 of 2 images are NaN"):
            metric.update(torch.tensor([[1.0, torch.nan]]), real=True)


def test_inception_is_asked_for_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for metric in (FID, KID):
        with pytest.raises(ImportError, match="pip install torch-fidelity"):
            metric()
        with pytest.raises(TypeError, match="torch module"):
            metric(SizedFunction())
    with pytest.raises(ValueError, match="Set its num_features"):
        FID(nn.Identity())


class SizedFunction:
    num_features = 2


def test_features_are_what_the_last_linear_layer_reads() -> None:
    from lightning_unlearn.diffusion.judges import MiniatureJudge

    judge = MiniatureJudge("style")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = PenultimateFeatures(judge)
    found = features(images)
    assert found.shape == (3, features.num_features) == (3, 1024)
    assert torch.equal(found, judge.classifier[:-1](images))
    torch.testing.assert_close(judge.classifier[-1](found).softmax(1), judge(images)[1])
    assert not judge.classifier[-1]._forward_pre_hooks


def test_features_do_not_depend_on_the_mode_nor_change_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)).train()
    features, images = PenultimateFeatures(network), torch.rand(4, 3, 2, 2)
    found = features(images)
    assert torch.equal(found, network.eval()[:-1](images))
    network.train()
    fid = FID(features)
    fid.train()  # as its owner would set it
    assert torch.equal(features(images), found)
    assert all(child.training for child in network.modules())
    assert torch.equal(PenultimateFeatures(network, "1")(images), images.flatten(1))
    with pytest.warns(UserWarning, match="4 real and 4 generated images is biased"):
        assert measured(fid, images, images) == pytest.approx(0.0, abs=1e-6)  # and covariances of rank 3 of 5


def test_networks_without_such_a_layer_are_refused() -> None:
    with pytest.raises(TypeError, match="function"):
        PenultimateFeatures(torch.relu)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ReLU has no linear layer"):
        PenultimateFeatures(nn.ReLU())
    with pytest.raises(ValueError, match="has no layer 'head'"):
        PenultimateFeatures(nn.Sequential(nn.Linear(2, 2)), "head")
    with pytest.raises(TypeError, match="'1' is a ReLU"):
        PenultimateFeatures(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "1")
    with pytest.raises(ValueError, match=r"one vector an image, \(4, 2\), but read \[\(4, 3, 2\)\]"):
        PenultimateFeatures(nn.Linear(2, 2))(torch.rand(4, 3, 2))


def test_the_feature_distance_is_of_pairs() -> None:
    x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    expected = torch.tensor([0.0, 1 - math.sqrt(0.5), 2.0])
    torch.testing.assert_close(feature_distance(Identity(), x, y), expected)
    with pytest.raises(ValueError, match="in pairs"):
        feature_distance(Identity(), x, y[:1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a CLIP model of random weights."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=small | text, vision_config=small | vision, projection_dim=8)).save_pretrained(
        folder
    )
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16), tokenizer).save_pretrained(folder)
    return folder


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
PROMPTS = ["a red circle", "van gogh", "a photo of a green square in the style of van gogh art art art art art"]


def test_the_clip_score_is_that_of_the_model_that_the_folder_has(clip: Path) -> None:
    model, processor = load_clip(str(clip))
    cosines = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):  # one by one: without padding
        inputs = processor(images=[(image * 255).round().byte()], text=[prompt], return_tensors="pt", truncation=True)
        with torch.no_grad():
            seen = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
            read = model.get_text_features(inputs["input_ids"]).pooler_output[0]
        cosines.append(seen @ read / seen.norm() / read.norm())
    torch.testing.assert_close(clip_similarity(model, processor, IMAGES, PROMPTS), torch.stack(cosines))
    for source in (str(clip), (model, processor)):
        score = CLIPScore(source)
        score.update(IMAGES[:2], PROMPTS[:2])
        score.update(IMAGES[2:], PROMPTS[2:])
        expected = max(0.0, 100 * float(torch.stack(cosines).mean()))
        assert float(score.compute()) == pytest.approx(expected, rel=1e-5)


class Angles(nn.Module):
    """A CLIP whose cosines are the red of the first pixel, times 4, less 1."""

    device = torch.device("cpu")
    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=16))

    def forward(self, red: Tensor) -> Any:
        cosine = 4 * red - 1
        return SimpleNamespace(
            image_embeds=torch.stack([cosine, (1 - cosine.square()).sqrt()], 1),
            text_embeds=torch.tensor([[2.0, 0.0]]).expand(len(red), -1),
        )


def first_pixels(images: list[Tensor], **_: Any) -> dict[str, Tensor]:
    return {"red": torch.stack([image[0, 0, 0] for image in images]) / 255}


def angle_clip() -> Any:
    return Angles(), first_pixels


def test_the_clip_score_is_not_negative_but_the_cosine_is() -> None:
    dark, light = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.4)
    assert clip_similarity(*angle_clip(), torch.cat([dark, light]), ["a", "a"]).tolist() == pytest.approx([-1.0, 0.6])
    score = CLIPScore(angle_clip())
    score.update(dark, ["a"])
    assert float(score.compute()) == 0.0
    score.update(light.repeat(4, 1, 1, 1), ["a"] * 4)
    assert float(score.compute()) == pytest.approx(100 * (4 * 0.6 - 1) / 5)  # the mean is cut, not the images


def test_images_and_prompts_that_do_not_fit_are_refused(clip: Path) -> None:
    score = CLIPScore(str(clip))
    for images, prompts, message in (
        (IMAGES, PROMPTS[:2], "3 images and 2 prompts"),
        (IMAGES[:1], "a", "one string"),
        (IMAGES * 255, PROMPTS, r"in \[0, 1\]"),
        ((IMAGES * 255).byte(), PROMPTS, "floating point"),
        (IMAGES[0], PROMPTS, r"\(B, 3, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            score.update(images, prompts)
    with pytest.raises(ValueError, match="counted no image"):
        score.compute()


def test_clip_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"lightning-unlearn\[diffusion\]"):
        CLIPScore("any/model")


def shared(rank: int, processes: int) -> list[float]:
    """Some of the images each; processes have unlike numbers of batches. See tests/distributed."""
    x, y = normal(31, 0), normal(31, 1) * 2 + 1
    metrics: list[Any] = [FID(Identity()), KID(Identity(), 1, 31)]
    for part in x[rank::processes].split(7 - 4 * rank):
        for metric in metrics:
            metric.update(part, real=True)
    for part in y[rank::processes].split(5):
        for metric in metrics:
            metric.update(part, real=False)
    score = CLIPScore(angle_clip())
    score.update(0.4 * IMAGES[rank::processes], PROMPTS[rank::processes])
    return [float(metrics[0].compute()), float(metrics[1].compute()[0]), float(score.compute())]
