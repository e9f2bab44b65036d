"""Attention to an erased concept's words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.canvas.attention import AttentionReading, attention_change, read_attention
from tests.diffusion.tiny import weights

PROMPTS = ["a circle of van gogh", "van gogh", "a red square in the style of van gogh"]


def test_reading_does_not_depend_on_batches_and_leaves_the_model(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    before, images = weights(module), module.generate(PROMPTS, [1, 2, 3], steps=2)
    one = read_attention(module, PROMPTS, ["van gogh"], [1, 2, 3], steps=2, batch_size=3)
    two = read_attention(module, PROMPTS, ["van gogh"], [1, 2, 3], steps=2, batch_size=2)
    for name in ("spread", "area50", "mass"):
        assert getattr(one, name).shape == (3,)
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-5, rtol=1e-3)
    assert bool((one.spread > 0.9).all() & (one.spread <= 1).all())  # random weights attend to all places alike
    torch.testing.assert_close(module.generate(PROMPTS, [1, 2, 3], steps=2), images)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())
    assert not module.unet._forward_hooks


def test_the_half_with_the_prompt_counts(tiny_sd: Path) -> None:
    """Of a pass with guidance, the reading is that of the prompt's half, by an attention recorded here."""
    module = LitTextToImage(str(tiny_sd))
    recorded: list[torch.Tensor] = []

    class Recorder(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):  # type: ignore[no-untyped-def]
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            recorded.append(attn.get_attention_scores(query, key).unflatten(0, (-1, attn.heads)))
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)

    layers = [m for n, m in module.unet.named_modules() if n.endswith("attn2")]
    kept = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(Recorder())
    module.generate(["a van gogh"], [5], steps=1, guidance=4.0)
    for layer, processor in zip(layers, kept, strict=True):
        layer.set_processor(processor)
    # Beginning, "a", "van", "gogh": the name is at 2 and 3. Each layer's mean over places is that of its map.
    heads = torch.cat([calls[1, :, :, 2:4].sum(2).mean(1) for calls in recorded])
    read = read_attention(module, ["a van gogh"], ["van gogh"], [5], steps=1, guidance=4.0)
    assert read.mass.item() == pytest.approx(heads.mean().item(), rel=1e-4)


def test_change_and_its_correlation_with_what_is_shown() -> None:
    before = AttentionReading(torch.full((6,), 0.9), torch.full((6,), 0.5), torch.full((6,), 0.2))
    moved = torch.tensor([0.0, 0.0, 0.1, 0.1, -0.4, -0.4])
    after = AttentionReading(before.spread + moved, before.area50 - 0.1, before.mass)
    shown = torch.tensor([1.0, 0.5, 0.0])
    change = attention_change(after, before, shown)
    assert change.spread == pytest.approx(-0.1)
    assert (change.area50, change.mass) == (pytest.approx(-0.1), 0.0)
    assert change.correlation == pytest.approx(-1.0)
    same = attention_change(before, before, shown)
    assert (same.spread, same.area50, same.mass, same.correlation) == (0.0, 0.0, 0.0, None)
    assert same.to_dict() == {"spread": 0.0, "area50": 0.0, "mass": 0.0, "correlation": None}
    with pytest.raises(ValueError, match="Readings of 6 and 6 images are not of the same images of 4 prompts"):
        attention_change(after, before, torch.ones(4))


def test_errors_of_reading(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    with pytest.raises(ValueError, match="a seed of its own"):
        read_attention(module, PROMPTS, ["van gogh"], [1])
    with pytest.raises(ValueError, match="has none of them"):
        read_attention(module, ["a red circle"], ["van gogh"], [1])
