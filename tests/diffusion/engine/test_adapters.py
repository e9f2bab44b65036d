"""Adapters of rank one on a UNet of random weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.engine.adapters import LowRankAdapter, LowRankAdapters, adapted_layers
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from lightning_unlearn.functional.diffusion.spm import latent_anchors, permeability

CONCEPT = "a circle in the style of van gogh"


def output(model: LitTextToImage, prompt: str = CONCEPT) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    with torch.no_grad():
        states = encode(model, tokenize(model.tokenizer, [prompt])["input_ids"])
        return unet_output(model, latents, torch.tensor(500), states)


def trained(model: LitTextToImage, rank: int = 1, alpha: float = 1.0) -> LowRankAdapters:
    """Adapters that do something."""
    adapters, draw = LowRankAdapters(model.unet, rank, alpha), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.up.copy_(0.3 * torch.randn(adapter.up.shape, generator=draw))
    return adapters


def test_new_adapters_and_multiplier_0_are_the_model_bit_for_bit(model: LitTextToImage) -> None:
    before = output(model)
    adapters = LowRankAdapters(model.unet)
    assert torch.equal(output(model), before)
    adapters.remove()
    adapters = trained(model)
    assert not torch.allclose(output(model), before, atol=1e-2)
    with adapters.scaled(0):
        assert torch.equal(output(model), before)


def test_they_are_on_every_layer_of_every_transformer(model: LitTextToImage) -> None:
    # Seven transformers: two projections, eight of attention, two of the feed-forward.
    layers = adapted_layers(model.unet)
    assert len(layers) == 7 * 12
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers.values()) == 7 * 2
    with pytest.raises(ValueError, match="Transformer2DModel"):
        adapted_layers(nn.Linear(2, 2))


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (3, 1.5)])
@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_merging_is_what_they_add(rank: int, alpha: float, multiplier: float, model: LitTextToImage) -> None:
    before = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    adapters = trained(model, rank, alpha)
    with adapters.scaled(multiplier):
        adapted = output(model)
    adapters.merge(multiplier)
    torch.testing.assert_close(output(model), adapted, atol=1e-5, rtol=0)
    for path in adapters.layers:
        change = model.unet.get_parameter(f"{path}.weight") - before[f"{path}.weight"]
        assert torch.linalg.matrix_rank(change.flatten(1).double(), rtol=1e-4) <= rank
    assert [n for n, _ in model.unet.named_parameters()] == list(before)


def test_a_convolution_keeps_its_geometry() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel_size=3, stride=2, padding=1, dilation=1)
    adapter = LowRankAdapter(layer, 2, 4.0, torch.Generator().manual_seed(0))
    nn.init.normal_(adapter.up)
    x = torch.randn(1, 3, 9, 9)
    merged = nn.functional.conv2d(x, layer.weight + adapter.change(), layer.bias, 2, 1)
    torch.testing.assert_close(adapter.adapt(layer, (x,), layer(x)), merged, atol=1e-5, rtol=1e-5)


def test_by_hand() -> None:
    layer = nn.Linear(2, 1, bias=False)
    adapter = LowRankAdapter(layer, 1, 3.0, torch.Generator())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0]]))
        adapter.down.copy_(torch.tensor([[0.0, 2.0]]))
        adapter.up.fill_(0.5)
    adapter.multiplier = 2.0
    # 5 + 2 * 3 * 0.5 * (2 * 7)
    assert adapter.adapt(layer, (torch.tensor([[5.0, 7.0]]),), torch.tensor([[5.0]])).item() == 5 + 42
    assert adapter.change().tolist() == [[0.0, 3.0]]


def test_they_are_no_part_of_a_state_dict_but_of_the_parameters(model: LitTextToImage) -> None:
    names, before = list(model.state_dict()), output(model)
    adapters = trained(model)
    assert list(model.state_dict()) == names
    model.load_state_dict(model.state_dict(), strict=True)
    assert sum("spm" in name for name, _ in model.named_parameters()) == 2 * 84
    twin = copy.deepcopy(model)
    torch.testing.assert_close(output(twin), output(model), atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        if name.endswith("spm.up"):
            parameter.data.zero_()
    torch.testing.assert_close(output(model), before, atol=1e-5, rtol=0)
    assert not torch.allclose(output(twin), before, atol=1e-2)
    adapters.remove()
    assert not any("spm" in name for name, _ in model.named_parameters())


def test_sets_add_up(model: LitTextToImage) -> None:
    one = trained(model)
    with pytest.raises(ValueError, match="named 'spm' already"):
        LowRankAdapters(model.unet)
    two = LowRankAdapters(model.unet, name="other")
    with torch.no_grad():
        for first, second in zip(one.adapters.values(), two.adapters.values(), strict=True):
            second.down.copy_(first.down)
            second.up.copy_(first.up)
    both = output(model)
    two.remove()
    with one.scaled(2.0):
        torch.testing.assert_close(output(model), both, atol=1e-5, rtol=1e-5)


def test_a_file_is_read_back_and_by_diffusers(tiny_sd: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = LitTextToImage(str(tiny_sd))
    before = output(model)
    adapters = trained(model, rank=2, alpha=3.0)
    adapted = output(model)
    adapters.save(tmp_path / "erased.safetensors")
    adapters.remove()
    assert torch.equal(output(model), before)
    loaded = LowRankAdapters.load(model.unet, tmp_path / "erased.safetensors")
    assert torch.equal(output(model), adapted)
    loaded.remove()
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name="erased.safetensors")
    model.unet = pipeline.unet
    torch.testing.assert_close(output(model), adapted, atol=1e-5, rtol=0)


def test_a_file_of_another_model_is_refused(tiny_sd: Path, deep_sd: Path, tmp_path: Path) -> None:
    LowRankAdapters(LitTextToImage(str(deep_sd)).unet).save(tmp_path / "deep.safetensors")
    model = LitTextToImage(str(tiny_sd))
    with pytest.raises(ValueError, match="don't fit"):
        LowRankAdapters.load(model.unet, tmp_path / "deep.safetensors")
    LowRankAdapters(model.unet)  # nothing was left on it
    for options in ({"rank": 0}, {"alpha": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LowRankAdapters(model.unet, name="new", **options)  # type: ignore[arg-type]


def test_the_concept_passes_whole_and_others_by_their_words(model: LitTextToImage) -> None:
    adapters = LowRankAdapters(model.unet)
    assert adapters.permeability(model, "van gogh", "van gogh") == 1.0
    assert adapters.permeability(model, "van gogh", "art in the style of van gogh") == 1.0  # all its words
    half = adapters.permeability(model, "van gogh", "a red van")
    assert 0.5 <= half < 1.0
    along, across = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert permeability(across, along, {1, 2}, {2, 3, 4, 5}).item() == 0.25
    assert permeability(-along, along, {1}, {2}).item() == 0.0
    assert permeability(along + across, along, {1}, {2}).item() == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="no tokens"):
        permeability(along, across, {1}, set())


def test_anchors_are_rather_far_from_the_concept() -> None:
    concept = torch.tensor([[2.0, 0.0]])
    anchors = latent_anchors(concept, 4000, torch.Generator().manual_seed(0)).flatten(1)
    lengths = anchors.norm(dim=1)
    assert lengths.min() >= 1.6
    assert lengths.max() <= 2.4
    assert lengths.mean().item() == pytest.approx(2.0, abs=0.02)
    # In the plane, angles of a density as min(1, 1 - cos) have a mean cosine of -(pi / 4) / (pi - 1).
    assert (anchors[:, 0] / lengths).mean().item() == pytest.approx(-0.3667, abs=0.03)
    with pytest.raises(ValueError, match="all 0"):
        latent_anchors(0 * concept, 1, torch.Generator())
