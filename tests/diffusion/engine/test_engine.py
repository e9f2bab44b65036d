"""The engine on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import LitTextToImage, TextEncoderWeights, denoising_nll
from lightning_unlearn.diffusion.engine.attention import attention_probabilities
from lightning_unlearn.diffusion.engine.model import alphas_bar, latent_shape, unet_output
from lightning_unlearn.diffusion.engine.parameters import kv_layers, select_params
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.engine.sampling import partial_samples, trajectory
from lightning_unlearn.diffusion.engine.text import empty_states, encode, inject, tokenize
from lightning_unlearn.functional.diffusion.ddim import add_noise, ddim_timesteps
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator
from tests.diffusion.tiny import TENSORS


def ids(model: LitTextToImage, *prompts: str) -> Tensor:
    return tokenize(model.tokenizer, prompts)["input_ids"]


def names(model: LitTextToImage, trainable: Any, compat: Any = "ldm") -> set[str]:
    return set(select_params(model, trainable, compat))


def test_a_known_word_is_one_token_and_an_unknown_one_is_many(model: LitTextToImage) -> None:
    mask = tokenize(model.tokenizer, ["", "a photo of van gogh", "nudity"])["attention_mask"]
    assert mask.sum(1).tolist() == [2, 7, 8]


def test_subsets_of_the_unet_are_those_of_the_original_code(model: LitTextToImage) -> None:
    sizes = {subset: len(names(model, subset)) for subset in ("full", "xattn", "selfattn", "noxattn", "kv")}
    assert sizes == {"full": TENSORS, "xattn": 35, "selfattn": 35, "noxattn": 243, "kv": 14}
    out = {"unet.conv_norm_out.weight", "unet.conv_norm_out.bias", "unet.conv_out.weight", "unet.conv_out.bias"}
    time = {f"unet.time_embedding.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert names(model, "full") - names(model, "notime") == out | time
    assert names(model, "notime") - names(model, "noxattn") == names(model, "xattn")
    assert any("time_emb_proj" in name for name in names(model, "noxattn"))


def test_subsets_of_the_newer_code_leave_norms_and_take_the_time_embedding(model: LitTextToImage) -> None:
    new = names(model, "noxattn", "diffusers")
    assert any(".time_embedding." in name for name in new)
    assert any(".conv_out." in name for name in new)
    assert not any("norm" in name for name in new)
    assert names(model, "xattn", "diffusers") == names(model, "xattn")
    assert names(model, "kv", "diffusers") == names(model, "kv")
    assert new | names(model, "xattn") == names(model, "full", "diffusers")
    with pytest.raises(ValueError, match="trainable must be one of"):
        names(model, "xlayer", "diffusers")


def test_layers_of_stable_diffusion_are_not_in_a_small_unet(model: LitTextToImage, deep_sd: Path) -> None:
    with pytest.raises(ValueError, match="selects no weight"):
        names(model, "xlayer")
    deep = LitTextToImage(str(deep_sd))
    layers = {name.partition(".transformer_blocks")[0] for name in names(deep, "xlayer")}
    assert layers == {"unet.up_blocks.2.attentions.0"}  # two in Stable Diffusion, whose blocks have three layers
    layers = {name.partition(".transformer_blocks")[0] for name in names(deep, "selflayer")}
    assert layers == {"unet.down_blocks.1.attentions.0", "unet.down_blocks.2.attentions.0"}


def test_subsets_of_stable_diffusion(model: LitTextToImage) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert sum(p.numel() for p in model.unet.parameters()) == 859_520_964
    assert len(kv_layers(model.unet)) == 32
    assert {layer.in_features for layer in kv_layers(model.unet).values()} == {768}
    layers = {name.partition(".transformer_blocks")[0] for name in names(model, "xlayer")}
    assert layers == {"unet.up_blocks.2.attentions.0", "unet.up_blocks.2.attentions.2"}
    assert len(names(model, "selflayer")) == 2 * 5


def test_a_layer_of_the_text_encoder_is_sixteen_tensors_and_not_its_namesakes(deep_sd: Path) -> None:
    deep = LitTextToImage(str(deep_sd))
    first = names(deep, TextEncoderWeights(layers=[1]))
    assert len(first) == 16
    assert all("encoder.layers.1." in name for name in first)
    assert len(names(deep, {"layers": [0, 1, 10, 11]})) == 64
    assert len(names(deep, "text_encoder")) == 12 * 16 + 2
    assert len(names(deep, TextEncoderWeights(norm=False))) == 12 * 16
    assert len(names(deep, TextEncoderWeights(layers=[0], component="attn"))) == 8
    assert len(names(deep, TextEncoderWeights(layers=[0], component="ffn", norm=True))) == 4 + 2
    assert not any("embedding" in name for name in names(deep, "text_encoder"))
    with pytest.raises(ValueError, match="12 layers, counted from 0"):
        names(deep, TextEncoderWeights(layers=[12]))


def test_everything_is_everything(model: LitTextToImage) -> None:
    chosen = names(model, "all")
    assert {n for n, _ in model.named_parameters() if not n.startswith("vae.")} == chosen


def test_kv_layers_come_in_order(model: LitTextToImage) -> None:
    layers = kv_layers(model.unet)
    assert len(layers) == 14
    assert all(layer.bias is None for layer in layers.values())
    assert list(layers) == [n for n, _ in model.unet.named_modules() if n in layers]
    with pytest.raises(ValueError, match="attends to no text"):
        kv_layers(model.vae)


def test_injected_embeddings_of_the_tokens_are_the_tokens(model: LitTextToImage) -> None:
    tokens = ids(model, "a photo of van gogh", "art")
    plain = encode(model, tokens)
    soft = model.text_encoder.get_input_embeddings()(tokens).detach().requires_grad_()
    with inject(model.text_encoder, soft):
        states = encode(model, tokens)
    assert torch.equal(states, plain)
    (gradient,) = torch.autograd.grad(states.square().mean(), soft)
    assert (gradient[0].norm(dim=1) > 0).all()
    assert torch.equal(encode(model, tokens), plain)
    with pytest.raises(RuntimeError), inject(model.text_encoder, soft[:, :3]):
        encode(model, tokens)
    assert torch.equal(encode(model, tokens), plain)


def sample(model: LitTextToImage, choice: int, **options: Any) -> tuple[Tensor, Tensor]:
    noise = torch.randn(2, *latent_shape(model), generator=torch.Generator().manual_seed(0))
    seed = next(
        s for s in range(1000) if int(torch.randint(10, (), generator=torch.Generator().manual_seed(s))) == choice
    )
    states = encode(model, ids(model, "van gogh", "art")).detach()
    generator, empty = torch.Generator().manual_seed(seed), empty_states(model, 2).detach()
    return partial_samples(model, states, empty, noise, [generator], **{"steps": 10, **options})[0]


def test_the_sampler_is_ddim_of_diffusers_and_its_timestep_the_next_one(model: LitTextToImage) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(model.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    z = torch.randn(2, *latent_shape(model), generator=torch.Generator().manual_seed(0))
    states = torch.cat([empty_states(model, 2), encode(model, ids(model, "van gogh", "art"))])
    with torch.no_grad():
        for t in scheduler.timesteps[:6]:
            unconditional, conditional = model.unet(torch.cat([z, z]), t, states).sample.chunk(2)
            z = scheduler.step(unconditional + 3 * (conditional - unconditional), t, z).prev_sample
    latents, timestep = sample(model, choice=6)
    torch.testing.assert_close(latents, z)
    assert timestep == scheduler.timesteps[6]
    assert not latents.requires_grad


def test_latents_have_the_noise_level_of_their_timestep(model: LitTextToImage) -> None:
    """A model that always predicts the true noise leaves latents on the line that ``add_noise`` draws."""
    z0, noise = torch.full((2, 4, 8, 8), 0.5), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    levels, timesteps = alphas_bar(model), ddim_timesteps(10)
    start = add_noise(z0, noise, levels[timesteps[0]])
    model.unet.forward = lambda z, t, encoder_hidden_states: type("Output", (), {"sample": noise})  # type: ignore[method-assign]
    states = empty_states(model, 2)
    pairs = list(trajectory(model, states, states, start, steps=10, guidance=1.0))
    assert [int(t) for _, t in pairs] == [*timesteps.tolist(), 0]
    for latents, timestep in pairs:
        torch.testing.assert_close(latents, add_noise(z0, noise, levels[timestep]), atol=1e-4, rtol=1e-4)


def test_the_authors_pairing_runs_further_than_its_timestep(model: LitTextToImage) -> None:
    exact, _ = sample(model, choice=5)
    counter = PassCounter()
    counter.attach(model)
    _, timestep = sample(model, choice=6, pairing="ldm")
    assert counter.unet == 10 - 6 + 1
    assert 600 <= timestep < 700
    latents, _ = sample(model, choice=6, pairing="ldm")
    torch.testing.assert_close(latents, exact)  # both ran five steps


@pytest.mark.parametrize("pairing", ["exact", "ldm"])
def test_points_of_one_trajectory_are_those_of_a_sampler_for_each(model: LitTextToImage, pairing: Any) -> None:
    states, noise = encode(model, ids(model, "van gogh", "art")), row_noise((4, 8, 8), [0, 1], 0)
    arguments: tuple[Any, ...] = (model, states.detach(), empty_states(model, 2).detach(), noise)
    options: Any = {"steps": 6, "pairing": pairing}
    with PassCounter() as counter:
        counter.attach(model)
        path = partial_samples(*arguments, [keyed_generator(i) for i in range(5)], **options, rows=1)
        together = counter.unet
        for i, (latents, timestep) in enumerate(path):
            ((z, t),) = partial_samples(*arguments, [keyed_generator(i)], **options)
            torch.testing.assert_close(latents, z[: None if i == 0 else 1])
            assert t == timestep
        assert counter.unet > 2 * together


def test_guidance_is_one_pass_of_twice_the_rows(model: LitTextToImage) -> None:
    with PassCounter() as counter:
        counter.attach(model)
        sample(model, choice=4)
        assert (counter.unet, counter.unet_rows) == (4, 16)
        assert (counter.text_encoder, counter.text_encoder_rows) == (2, 3)
        sample(model, choice=4, guidance=1.0)
        assert (counter.unet, counter.unet_rows) == (8, 24)
    sample(model, choice=4)
    assert counter.unet == 8


def test_attention_probabilities_are_seen_and_change_nothing(model: LitTextToImage) -> None:
    z, t, states = torch.randn(2, 4, 8, 8), torch.tensor(500), encode(model, ids(model, "van gogh", "art"))
    processors = {n: type(p) for n, p in model.unet.attn_processors.items()}
    plain = unet_output(model, z, t, states)
    with attention_probabilities(model.unet) as seen:
        watched = unet_output(model, z, t, states)
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-4)
    assert len(seen) == 7
    for (probabilities,) in seen.values():
        assert probabilities.shape[0] == 2
        assert probabilities.shape[-1] == states.shape[1]
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    assert {n: type(p) for n, p in model.unet.attn_processors.items()} == processors
    assert torch.equal(unet_output(model, z, t, states), plain)
    with pytest.raises(ValueError, match="no attention layer"), attention_probabilities(model.unet, "attn3"):
        pass


def test_the_denoising_loss_of_a_row_is_its_own(model: LitTextToImage) -> None:
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"pixel_values": pixels, "input_ids": ids(model, "red", "art", "green"), "index": torch.tensor([4, 5, 6])}
    whole = denoising_nll(model, batch)
    assert whole.shape == (3,)
    part = denoising_nll(model, {name: value[1:] for name, value in batch.items()})
    torch.testing.assert_close(part, whole[1:])
    with pytest.raises(TypeError, match="'input_ids' of a caption, and 'pixel_values'"):
        denoising_nll(model, {"input_ids": batch["input_ids"]})
