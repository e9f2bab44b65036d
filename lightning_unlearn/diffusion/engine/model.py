"""Protocol of a text-to-image model, and forward passes of its UNet."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.functional.diffusion.ddim import Prediction
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance

__all__ = [
    "TextToImage",
    "alphas_bar",
    "as_text_to_image",
    "guided_output",
    "image_size",
    "latent_shape",
    "prediction_type",
    "refuse_adapters",
    "refuse_half",
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


def as_text_to_image(module: nn.Module, adapters: bool = False) -> TextToImage:
    """The same module, checked.

    Args:
        module: Any module.
        adapters: Whether loaded adapters such as a LoRA, and fused projections, are allowed, as where the model only
            draws.

    Raises:
        TypeError: If it lacks a part, or has two text encoders, as Stable Diffusion XL has.
        ValueError: If adapters are loaded, or projections are fused.
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
    if not adapters:
        refuse_adapters(module)
    return cast(TextToImage, module)


def refuse_adapters(module: Any) -> None:
    """Refuse a LoRA or another adapter that is loaded, fused or not, an IP-Adapter, and fused projections.

    With one of them, the layers that methods edit and export by name are not those that compute and train.

    Args:
        module: A module or a pipeline with a ``unet`` or a ``text_encoder``, or one of these.

    Raises:
        ValueError: If there is one, or projections are fused.
    """
    parts = {name: getattr(module, name, None) for name in ("unet", "text_encoder", "vae")}
    if not any(isinstance(part, nn.Module) for part in parts.values()):
        parts = {type(module).__name__: module}
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        # Adapters of peft, LoRA and others, keep the layer that they wrap under this name, also when they are fused.
        wrapped = next((path for path, layer in part.named_modules() if "base_layer" in layer._modules), None)
        if wrapped is not None:
            raise ValueError(
                f"An adapter, such as a LoRA, is loaded in {name}: {wrapped} is wrapped in a "
                f"{type(part.get_submodule(wrapped)).__name__}. It would train, be attacked and be saved in place of "
                "the model's own weights. To keep what it adds: pipeline.fuse_lora(); "
                "pipeline.unload_lora_weights(); pipeline.save_pretrained('merged'), and open 'merged'. To drop it: "
                "pipeline.unload_lora_weights(), and open the model anew. Of an adapter that peft injected: "
                "merge_and_unload() of its tuner or PeftModel."
            )
        if getattr(part, "encoder_hid_proj", None) is not None:
            raise ValueError(
                f"{name} has an encoder_hid_proj, as an IP-Adapter brings, so that it reads images beside the text. "
                "Call pipeline.unload_ip_adapter() first."
            )
        _refuse_processors(name, part)


def _refuse_processors(name: str, part: nn.Module) -> None:
    """Refuse attention that does not read the weights of its own layers."""
    for path, layer in part.named_modules():
        processor = getattr(layer, "processor", None)
        kind = type(processor).__name__
        if kind.startswith("Fused"):
            raise ValueError(
                f"The projections of {name} are fused: its attention reads to_qkv and to_kv, copies of the weights "
                "that would train, while to_k and to_v are edited and saved. Call "
                "pipeline.unfuse_qkv_projections() first, and fuse them where the result is used."
            )
        if isinstance(processor, nn.Module) and next(processor.parameters(), None) is not None:
            raise ValueError(
                f"The attention of {name}, {path}, has a {kind} with weights of its own, which it reads in place of "
                "to_k and to_v, and which an export would lose. Copy its keys and values into to_k.weight and "
                "to_v.weight, call unet.set_attn_processor(AttnProcessor2_0()) and save the pipeline; or drop them."
            )


def refuse_half(module: nn.Module) -> None:
    """Refuse to train weights of 16 bits, at which most updates of unlearning round to nothing.

    Raises:
        MisconfigurationException: If weights that train are fp16 or bf16.
    """
    dtypes = {p.dtype for p in module.parameters() if p.requires_grad}
    precision = str(getattr(getattr(module, "_trainer", None), "precision", ""))
    half = next((str(dtype) for dtype in dtypes if dtype.itemsize < 4), None)
    # The Trainer converts them only after the run is set up.
    if half is None and precision not in ("bf16-true", "16-true"):
        return
    raise MisconfigurationException(
        f"The weights that train would be {half or precision}, at which most updates of unlearning round to nothing. "
        "Use precision='bf16-mixed', which keeps weights of 32 bits, and module.float() if you made them half yourself."
    )


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


def image_size(model: Any) -> tuple[int, int]:
    """Height and width in pixels of the images that a model with a ``vae`` draws."""
    scale = 2 ** (len(model.vae.config.block_out_channels) - 1)
    _, height, width = latent_shape(model)
    return height * scale, width * scale


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
