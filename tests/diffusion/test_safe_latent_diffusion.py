"""Safe Latent Diffusion on a pipeline of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.guards import SafeLatentDiffusion
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.functional.diffusion.sld import SLD_PRESETS, SafetyConfig, safety_guidance

PROMPTS, SEEDS = ["a red circle", "a photo of a green square in the style of van gogh"], [3, 4]
CONCEPT = "van gogh"
ALL = SafetyConfig(0, 5000.0, 1.0, 0.5, 0.7)


def draw(model: LitTextToImage, steps: int = 5, **options: Any) -> Tensor:
    return model.generate(PROMPTS, SEEDS, steps=steps, **options)


def guarded(model: LitTextToImage, config: Any = ALL, **options: Any) -> Tensor:
    with SafeLatentDiffusion(model, CONCEPT, config):
        return draw(model, **options)


# Elements in turn: above the threshold; below by less than 1 / scale; below, where the scale is cut; at the threshold.
E_0 = torch.tensor([0.5, 0.5, 0.5, 0.5])
E_P = torch.tensor([2.0, 1.0, 1.0, 1.0])
E_S = torch.tensor([1.0, 1.25, 3.0, 1.0])


def test_the_formula_element_by_element() -> None:
    config = SafetyConfig(0, 2.0, 0.0, 0.5, 0.75)
    nu = torch.tensor([0.0, 1.0, 1.0, 0.0])
    gamma, after = safety_guidance(E_0, E_P, E_S, nu, config)
    torch.testing.assert_close(gamma, torch.tensor([0.0, 0.5 * 0.75 + 0.5, 1.0 * 2.5 + 0.5, 0.0]))
    torch.testing.assert_close(after, 0.75 * nu + 0.25 * gamma)


def test_an_element_at_the_threshold_is_left_alone() -> None:
    """ε_p - ε_S is 1, -0.25, -2 and 0."""
    gamma, _ = safety_guidance(E_0, E_P, E_S, torch.zeros(4), replace(ALL, threshold=-0.25))
    torch.testing.assert_close(gamma, torch.tensor([0.0, 0.0, 2.5, 0.0]))


def test_a_higher_threshold_steers_more_elements() -> None:
    found = [safety_guidance(E_0, E_P, E_S, torch.zeros(4), replace(ALL, threshold=x))[0] for x in (-1.0, 0.01, 1.5)]
    assert [int(gamma.count_nonzero()) for gamma in found] == [1, 2, 3]  # at ε_p = ε_S the scale is 0


def test_the_presets_are_those_of_diffusers() -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig as Theirs

    for name, ours in SLD_PRESETS.items():
        theirs = getattr(Theirs, name.upper())
        names = ("warmup_steps", "guidance_scale", "threshold", "momentum_scale", "mom_beta")
        values = (ours.warmup, ours.scale, ours.threshold, ours.momentum_scale, ours.momentum_decay)
        assert values == tuple(theirs[f"sld_{key}"] for key in names), name


@pytest.mark.parametrize("config", [ALL, SafetyConfig(3, 80.0, 0.001, 0.9, 0.2), "medium"])
def test_images_are_those_of_the_pipeline_in_diffusers(tiny_sd: Path, config: Any) -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe

    model = LitTextToImage(str(tiny_sd)).eval()
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "feature_extractor", "safety_checker")
    parts = {name: getattr(model.pipeline, name) for name in names}
    theirs = StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.safety_concept = CONCEPT
    constants = SLD_PRESETS[config] if isinstance(config, str) else config
    images = theirs(
        PROMPTS,
        num_inference_steps=12,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        sld_warmup_steps=constants.warmup,
        sld_guidance_scale=constants.scale,
        sld_threshold=constants.threshold,
        sld_momentum_scale=constants.momentum_scale,
        sld_mom_beta=constants.momentum_decay,
    ).images
    found = guarded(model, config, steps=12)
    torch.testing.assert_close(found, torch.from_numpy(images).permute(0, 3, 1, 2), atol=1e-4, rtol=0)
    assert not torch.allclose(found, draw(model, steps=12), atol=1e-3)


def test_without_a_scale_or_within_the_warm_up_it_is_plain_guidance(model: LitTextToImage) -> None:
    plain = draw(model)
    assert not torch.allclose(guarded(model), plain, atol=1e-3)
    for config in (replace(ALL, scale=0.0), replace(ALL, warmup=99)):
        torch.testing.assert_close(guarded(model, config), plain, atol=1e-5, rtol=0)


def test_the_warm_up_ends_at_its_step(model: LitTextToImage) -> None:
    """Five steps of PNDM are six passes; only in the last of them, number 5, is anything steered."""
    last, never = (guarded(model, replace(ALL, warmup=n, momentum_scale=0.0)) for n in (5, 6))
    assert torch.equal(never, guarded(model, replace(ALL, warmup=50)))
    assert not torch.equal(last, never)


def test_momentum_goes_on_during_the_warm_up(model: LitTextToImage) -> None:
    """At the last pass the scale of the step itself is the same; what differs is what came before."""
    with_it, without = (guarded(model, replace(ALL, warmup=5, momentum_scale=x)) for x in (0.5, 0.0))
    assert not torch.allclose(with_it, without, atol=1e-5)


def test_each_run_begins_anew(model: LitTextToImage) -> None:
    """Batches, and a second call, have no momentum of the first."""
    config = replace(ALL, warmup=2)
    once = guarded(model, config)
    with SafeLatentDiffusion(model, CONCEPT, config):
        first, second, apart = draw(model), draw(model), draw(model, batch_size=1)
    assert torch.equal(first, once)
    assert torch.equal(second, once)
    torch.testing.assert_close(apart, once, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_other_samplers_are_steered_alike(model: LitTextToImage, name: str) -> None:
    import diffusers

    model.pipeline.scheduler = getattr(diffusers, name).from_config(model.pipeline.scheduler.config)
    plain = draw(model)
    torch.testing.assert_close(guarded(model, replace(ALL, scale=0.0)), plain, atol=1e-4, rtol=0)
    assert not torch.allclose(guarded(model), plain, atol=1e-3)


def test_velocities_are_steered_by_the_noise_that_they_stand_for(tiny_v: Path) -> None:
    """A wrapper that gives a model's velocities as noise is steered to the same images by the same sampler."""
    from diffusers import DDIMScheduler

    model = LitTextToImage(str(tiny_v))
    model.pipeline.scheduler = DDIMScheduler.from_config(model.scheduler.config, clip_sample=False)
    config = replace(ALL, scale=30.0, threshold=0.003)  # where neither the cut nor the threshold decides alone
    plain, found = draw(model), guarded(model, config)
    assert not torch.allclose(found, plain, atol=1e-3)
    levels = model.scheduler.alphas_cumprod

    def as_noise(_: Any, args: tuple[Any, ...], output: tuple[Tensor]) -> tuple[Tensor]:
        level = levels[args[1]]
        return (level.sqrt() * output[0] + (1 - level).sqrt() * args[0],)

    model.pipeline.scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config, prediction_type="epsilon")
    model.scheduler = model.pipeline.scheduler
    handle = model.unet.register_forward_hook(as_noise)
    torch.testing.assert_close(draw(model), plain, atol=1e-3, rtol=0)
    # Inside the guard the wrapper sees three rows an image, as the UNet does.
    with SafeLatentDiffusion(model, CONCEPT, config) as guard:
        handle.remove()
        model.unet.register_forward_hook(as_noise, prepend=True)
        noise = draw(model)
    assert guard.passes.unet_rows == 5 * 3 * 2
    torch.testing.assert_close(noise, found, atol=1e-3, rtol=0)


def test_the_first_step_of_zero_terminal_snr_is_not_steered(tiny_v: Path) -> None:
    """Velocities at a signal of 0 stand for one noise, the latents: what differs between prompts is the image."""
    from diffusers import DDIMScheduler

    model = LitTextToImage(str(tiny_v))
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model.scheduler = model.pipeline.scheduler = DDIMScheduler.from_config(model.scheduler.config, **options)
    assert model.scheduler.alphas_cumprod[-1] == 0
    assert torch.equal(guarded(model, steps=1), draw(model, steps=1))
    steered = guarded(model)
    assert steered.isfinite().all()
    assert not torch.equal(steered, draw(model))


def test_a_pass_has_three_rows_an_image_and_they_are_counted(model: LitTextToImage) -> None:
    with PassCounter() as outside:
        outside.attach(model)
        with SafeLatentDiffusion(model, CONCEPT) as guard:
            draw(model)
        assert (guard.passes.unet, guard.passes.unet_rows) == (6, 6 * 3 * 2)
        assert (outside.unet, outside.unet_rows) == (6, 6 * 3 * 2)
        draw(model)
        assert (guard.passes.unet, outside.unet_rows) == (6, 6 * 3 * 2 + 6 * 2 * 2)


@pytest.fixture
def parts(model: LitTextToImage) -> Iterator[LitTextToImage]:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    yield model
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not model.unet._forward_hooks
    assert not model.unet._forward_pre_hooks
    assert "set_timesteps" not in vars(model.pipeline.scheduler)


def test_nothing_of_it_stays_behind(parts: LitTextToImage) -> None:
    plain, training = draw(parts), parts.training
    guarded(parts)
    assert torch.equal(draw(parts), plain)
    assert parts.training == training


def test_nothing_of_it_stays_behind_after_an_error(parts: LitTextToImage) -> None:
    with pytest.raises(ValueError, match="guidance above 1"):
        guarded(parts, guidance=1.0)
    with (
        SafeLatentDiffusion(parts, CONCEPT),
        pytest.raises(RuntimeError, match="already"),
        SafeLatentDiffusion(parts, CONCEPT),
    ):
        pass


def test_what_does_not_fit_is_refused(model: LitTextToImage) -> None:
    for options in ({"warmup": -1}, {"scale": -1.0}, {"momentum_decay": 1.0}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SafetyConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="config must be 'weak', 'medium', 'strong' or 'max', but got 'mild'"):
        SafeLatentDiffusion(model, CONCEPT, "mild")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concept is empty"):
        SafeLatentDiffusion(model, " ")
    with pytest.raises(TypeError, match="no unet"):
        SafeLatentDiffusion(LightningModule(), CONCEPT)
    model.pipeline = None
    with pytest.raises(TypeError, match="has no pipeline"):
        SafeLatentDiffusion(model, CONCEPT)
