"""Pipelines of diffusers: loading them, and drawing with the parts of a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.diffusion.engine.sources import is_single_file, open_file, open_folder

__all__ = ["draw", "load_frozen", "load_pipeline"]


def load_pipeline(
    module: Any,
    model: str,
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
) -> None:
    """Load a ``StableDiffusionPipeline`` and make its parts the parts of a module, in fp32.

    Weights are read from safetensors files only, no code of a repository is run, and the safety checker is not loaded.
    The other arguments are those of ``LitTextToImage``. ``module.safety_checker_source`` is the checker that the
    pipeline had, if any.

    Raises:
        TypeError: If the pipeline has another architecture.
        ValueError: If its weights are in files that are not read.
        FileNotFoundError: If there is no such file or folder.
    """
    try:
        import diffusers  # noqa: F401
    except ImportError:
        raise ImportError('Diffusion models need diffusers: pip install "lightning-unlearn[diffusion]"') from None
    model = str(model)
    if is_single_file(model):
        pipeline, checker = open_file(model, config), None
    else:
        pipeline, checker = open_folder(model, revision, variant)
    _check(pipeline, model)
    pipeline.set_progress_bar_config(disable=True)
    module.pipeline = pipeline
    module.safety_checker_source = checker
    for name in ("unet", "text_encoder", "vae", "tokenizer", "scheduler"):
        setattr(module, name, getattr(pipeline, name))
    module.float()


def _check(pipeline: Any, model: str) -> None:
    """Refuse parts that Stable Diffusion 1.x and 2.x do not have."""
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise TypeError(
            f"{model} has a {type(pipeline.scheduler).__name__}, which has no alphas_cumprod, so its noise levels are "
            "not those of Stable Diffusion 1.x and 2.x. Save the pipeline with another scheduler, such as "
            "DDIMScheduler.from_config(pipeline.scheduler.config)."
        )
    if getattr(pipeline.unet.config, "time_cond_proj_dim", None) is not None:
        raise TypeError(
            f"The UNet of {model} reads the weight of guidance (time_cond_proj_dim), as those of latent consistency "
            "models do, and draws in a few steps without an empty prompt. Use the model that it was distilled from."
        )
    inputs, latents = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if inputs != latents:
        raise TypeError(
            f"The UNet of {model} reads {inputs} channels, but the latents have {latents}: it is one for inpainting or "
            "for editing images. Use the text-to-image model that it was made from."
        )


def load_frozen(model: str, config: str | None = None) -> nn.Module:
    """A module of the parts of a pipeline, in evaluation mode and without gradients; see `load_pipeline`."""
    module = nn.Module()
    load_pipeline(module, model, config=config)
    return module.eval().requires_grad_(False)


def draw(module: nn.Module, wanted: Sequence[tuple[str, int, float]], steps: int) -> Tensor:
    """Images of prompts, by the module's own ``generate``, or by a ``StableDiffusionPipeline`` of its parts.

    Args:
        module: The model; guards may be on its ``generate(prompts, seeds, steps=, guidance=)``.
        wanted: Prompt, seed and guidance of each of ``N`` images.
        steps: Steps of the sampler.

    Returns:
        Shape ``(N, 3, H, W)``, in [0, 1], on the CPU.
    """
    generate = getattr(module, "generate", None) or _generator(module)
    options: dict[str, Any] = {"steps": steps}
    if "batch_size" in inspect.signature(generate).parameters:
        options["batch_size"] = len(wanted)
    images: dict[int, Tensor] = {}
    for guidance in dict.fromkeys(weight for _, _, weight in wanted):
        rows = [i for i, (_, _, weight) in enumerate(wanted) if weight == guidance]
        prompts, seeds = [wanted[i][0] for i in rows], [wanted[i][1] for i in rows]
        with torch.no_grad():
            images |= zip(rows, generate(prompts, seeds, guidance=guidance, **options).float().cpu(), strict=True)
    return torch.stack([images[i] for i in range(len(wanted))])


def _generator(module: Any) -> Callable[..., Tensor]:
    if not hasattr(module, "vae"):
        raise TypeError(
            f"{type(module).__name__} has neither a method generate(prompts, seeds, steps=, guidance=) nor a vae, so "
            "it can't draw what an attack finds. Give it one of them, or use LitTextToImage."
        )
    from diffusers import StableDiffusionPipeline

    parts = {name: getattr(module, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipeline: Any = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)

    def generate(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        return pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images

    return generate
