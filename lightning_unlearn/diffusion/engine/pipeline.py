"""Pipelines of diffusers: loading them, and drawing with the parts of a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["draw", "load_frozen", "load_pipeline"]


def load_pipeline(module: nn.Module, model: str, revision: str | None = None, variant: str | None = None) -> None:
    """Load a ``StableDiffusionPipeline`` and make its parts the parts of a module, in fp32.

    Weights are read from safetensors files only, no code of a repository is run, and the safety checker is not loaded.
    The other arguments are those of ``LitTextToImage``.

    Raises:
        TypeError: If the pipeline has another architecture.
    """
    try:
        from diffusers import DiffusionPipeline, StableDiffusionPipeline
    except ImportError:
        raise ImportError('Diffusion models need diffusers: pip install "lightning-unlearn[diffusion]"') from None
    kind = DiffusionPipeline.load_config(model, revision=revision)["_class_name"]
    if kind != StableDiffusionPipeline.__name__:
        raise TypeError(
            f"{model} is a {kind}, but a StableDiffusionPipeline (Stable Diffusion 1.x or 2.x) is supported."
        )
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        model,
        revision=revision,
        variant=variant,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    module.pipeline = pipeline
    for name in ("unet", "text_encoder", "vae", "tokenizer", "scheduler"):
        setattr(module, name, getattr(pipeline, name))
    module.float()


def load_frozen(model: str) -> nn.Module:
    """A module of the parts of a pipeline, in evaluation mode and without gradients; see `load_pipeline`."""
    module = nn.Module()
    load_pipeline(module, model)
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
