"""Protocol of a text-to-image model, and forward passes of its UNet."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_unlearn.functional.diffusion.ddim import Prediction
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance

__all__ = [
    "TextToImage",
    "alphas_bar",
    "as_text_to_image",
    "guided_output",
    "latent_shape",
    "prediction_type",
    "unet_output",
    "unet_outputs",
]

_PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")


@runtime_checkable
class TextToImage(Protocol):
    """The parts of a latent diffusion model with one text encoder (Stable Diffusion 1.x and 2.x), as attributes.

    Any LightningModule that has them can be used with the callbacks;
    [`LitTextToImage`][lightning_unlearn.LitTextToImage] is one.
    """

    unet: Any
    """``diffusers.UNet2DConditionModel``."""
    text_encoder: Any
    """``transformers.CLIPTextModel``."""
    tokenizer: Any
    """``transformers.CLIPTokenizer``."""
    scheduler: Any
    """Any scheduler of diffusers that has ``alphas_cumprod``: its noise levels and kind of prediction are read."""


def as_text_to_image(module: nn.Module) -> TextToImage:
    """The same module, checked.

    Raises:
        TypeError: If it lacks a part, or has two text encoders, as Stable Diffusion XL has.
    """
    missing = [name for name in _PARTS if not hasattr(module, name)]
    if missing:
        raise TypeError(
            f"{type(module).__name__} has no {' and no '.join(missing)}. Concept erasure reads a diffusion model by "
            f"the attributes {', '.join(_PARTS)}: use LitTextToImage, or give your module these."
        )
    if getattr(module, "text_encoder_2", None) is not None:
        raise TypeError(
            f"{type(module).__name__} has two text encoders, as Stable Diffusion XL, which is not supported. Use a "
            "Stable Diffusion 1.x or 2.x model."
        )
    return cast(TextToImage, module)


def alphas_bar(model: TextToImage) -> Tensor:
    """Share of the signal left at each noise level, shape ``(T,)``, on the device of the UNet."""
    return model.scheduler.alphas_cumprod.to(model.unet.device)


def prediction_type(model: TextToImage) -> Prediction:
    """What the UNet predicts.

    Raises:
        ValueError: If it is neither noise nor velocity.
    """
    kind = model.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"The scheduler's prediction_type is {kind!r}, but 'epsilon' or 'v_prediction' is supported.")
    return kind


def latent_shape(model: TextToImage) -> tuple[int, int, int]:
    """Shape ``(C, h, w)`` of one image's latents at the size that the UNet was made for."""
    size = model.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return model.unet.config.in_channels, height, width


def unet_output(model: TextToImage, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """The UNet's output ``(B, C, h, w)``, noise or velocity, in fp32.

    Args:
        model: The model.
        latents: Shape ``(B, C, h, w)``.
        timesteps: Shape ``(B,)`` or a scalar, int64.
        states: Text states, shape ``(B, L, D)``.
    """
    timesteps = torch.as_tensor(timesteps, device=latents.device).expand(len(latents))
    return model.unet(latents, timesteps, encoder_hidden_states=states).sample.float()


def unet_outputs(model: TextToImage, latents: Tensor, timesteps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    """The UNet's outputs for several prompts of the same latents, in one pass; for each as `unet_output`."""
    repeated = timesteps.repeat(len(states)) if timesteps.dim() else timesteps
    output = unet_output(model, latents.repeat(len(states), 1, 1, 1), repeated, torch.cat(states))
    return output.chunk(len(states))


def guided_output(
    model: TextToImage, latents: Tensor, timesteps: Tensor, empty: Tensor, states: Tensor, guidance: float
) -> Tensor:
    """The UNet's output under classifier-free guidance, in one pass; shapes as for `unet_output`."""
    unconditional, conditional = unet_outputs(model, latents, timesteps, empty, states)
    return classifier_free_guidance(unconditional, conditional, guidance)
