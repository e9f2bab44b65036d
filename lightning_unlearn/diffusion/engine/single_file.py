"""Single-file checkpoints in the original layout of Stable Diffusion, which ComfyUI and AUTOMATIC1111 read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.files import replacing

__all__ = ["original_layout", "save_single_file"]

_RESNET = (
    (".norm1.", ".in_layers.0."),
    (".conv1.", ".in_layers.2."),
    (".time_emb_proj.", ".emb_layers.1."),
    (".norm2.", ".out_layers.0."),
    (".conv2.", ".out_layers.3."),
    (".conv_shortcut.", ".skip_connection."),
)
_VAE_ATTENTION = (
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)
_OPEN_CLIP = (
    ("embeddings.token_embedding.", "token_embedding."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)


def save_single_file(model: Any, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write UNet, autoencoder and text encoder as one ``.safetensors`` file in the original layout.

    Such a file has neither the tokenizer nor the prediction type: for a model that predicts velocity, tools need a
    ``.yaml`` file beside it, as for Stable Diffusion 2.1.

    Args:
        model: A module or a pipeline with ``unet``, ``vae`` and ``text_encoder``.
        path: The file.
        dtype: Type of the numbers; by default that of the weights.

    Raises:
        ValueError: If the path does not end with ``.safetensors``.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"A single file is written as safetensors, but got {str(path)!r}. Let it end so.")
    from safetensors.torch import save_file

    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in original_layout(model).items()}
    with replacing(path) as part:
        save_file(weights, part, metadata={"format": "pt"})


def original_layout(model: Any) -> dict[str, Tensor]:
    """The weights of a model of Stable Diffusion 1.x or 2.x by the names of the original code.

    Args:
        model: As for `save_single_file`.
    """
    blocks = int(model.unet.config.layers_per_block)
    levels = len(model.vae.config.block_out_channels)
    unet, vae = model.unet.state_dict(), model.vae.state_dict()
    named = {f"model.diffusion_model.{_unet_name(name, blocks, unet)}": value for name, value in unet.items()}
    for name, value in vae.items():
        # Its attention was made of convolutions.
        convolved = "mid_block.attentions" in name and name.endswith("weight") and value.dim() == 2
        named[f"first_stage_model.{_vae_name(name, levels)}"] = value[..., None, None] if convolved else value
    return named | _text_encoder(model.text_encoder)


def _replaced(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def _unet_name(name: str, layers: int, unet: dict[str, Tensor]) -> str:
    whole = (
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
    )
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if found is None:
        old, new = next(pair for pair in whole if name.startswith(pair[0]))
        renamed = new + name.removeprefix(old)
    else:
        side, block, kind, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if side == "down" and kind == "downsamplers":
            renamed = f"input_blocks.{(layers + 1) * (block + 1)}.0.{rest.replace('conv.', 'op.')}"
        elif side == "down":
            renamed = f"input_blocks.{(layers + 1) * block + place + 1}.{int(kind == 'attentions')}.{rest}"
        elif kind == "upsamplers":
            # It comes after the attention, where the block has any.
            attends = any(key.startswith(f"up_blocks.{block}.attentions.") for key in unet)
            renamed = f"output_blocks.{(layers + 1) * block + layers}.{1 + attends}.{rest}"
        else:
            renamed = f"output_blocks.{(layers + 1) * block + place}.{int(kind == 'attentions')}.{rest}"
    return _replaced(renamed, _RESNET) if "resnets" in name else renamed


def _vae_name(name: str, levels: int) -> str:
    found = re.match(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if found is not None:
        side, block = found[2], int(found[3])
        level = block if side == "down" else levels - 1 - block
        inner = f"block.{found[5]}" if found[4] == "resnets" else f"{side}sample"
        name = f"{found[1]}.{side}.{level}.{inner}.{found[6]}"
    elif "mid_block.resnets." in name:
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda place: f"mid.block_{int(place[1]) + 1}", name)
    elif "mid_block.attentions.0." in name:
        name = _replaced(name.replace("mid_block.attentions.0.", "mid.attn_1."), _VAE_ATTENTION)
    return name.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")


def _text_encoder(encoder: Any) -> dict[str, Tensor]:
    plain = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    if encoder.config.hidden_act == "quick_gelu":  # OpenAI's, in Stable Diffusion 1.x
        return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in plain.items()}
    named, prefix = {}, "cond_stage_model.model."
    for name, value in plain.items():
        joint = re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name)
        if joint is not None:
            three = [plain[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[f"{prefix}transformer.resblocks.{joint[1]}.attn.in_proj_{joint[2]}"] = torch.cat(three)
        elif not re.search(r"self_attn\.[kv]_proj\.", name):
            named[prefix + _replaced(name, _OPEN_CLIP)] = value
    return named
