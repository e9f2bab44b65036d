"""Subsets of the weights of a diffusion model, by the names that papers give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.engine.model import TextToImage

__all__ = ["Compat", "TextEncoderWeights", "Trainable", "UNetWeights", "kv_layers", "select_params"]

Compat = Literal["ldm", "diffusers"]

UNetWeights = Literal["full", "xattn", "selfattn", "noxattn", "notime", "xlayer", "selflayer", "kv"]

# Prefixes and not substrings: every residual block has a `time_emb_proj`, which trains.
_TIME_AND_OUT = ("time_embedding.", "conv_norm_out.", "conv_out.")
_XLAYER = ("up_blocks.2.attentions.0.", "up_blocks.2.attentions.2.")
_SELFLAYER = ("down_blocks.1.attentions.0.", "down_blocks.2.attentions.0.")
_KV = re.compile(r"\.attn2\.to_[kv]\.")
_LAYER = re.compile(r"(?:^|\.)encoder\.layers\.(\d+)\.(.+)")
_COMPONENTS = {"all": "", "ffn": "mlp.", "attn": "self_attn."}


@dataclass
class TextEncoderWeights:
    """Weights of the text encoder, always without the embeddings of tokens and positions.

    AdvUnlearn's released code selects layers by the beginning of their names, so its option ``layer01`` trains layers
    0, 1, 10 and 11, and every higher option includes 10 and 11 as well. Here a number selects exactly one layer.

    Args:
        layers: Numbers of the layers, from 0; by default all.
        component: ``"all"`` of a layer, its ``"ffn"``, or its ``"attn"``.
        norm: Whether the final layer normalization is included; by default it is, if everything in all layers is.
    """

    layers: list[int] | None = None
    component: Literal["all", "ffn", "attn"] = "all"
    norm: bool | None = None

    def __post_init__(self) -> None:
        one_of("component", self.component, _COMPONENTS)


Trainable = UNetWeights | Literal["text_encoder", "all"] | TextEncoderWeights


def select_params(
    model: TextToImage, trainable: Trainable | dict[str, Any], compat: Compat = "ldm"
) -> dict[str, nn.Parameter]:
    """The weights of a subset by name, such as ``unet.mid_block.attentions.0...``.

    Of the UNet: ``"full"``; ``"xattn"``, the cross-attention; ``"selfattn"``, the self-attention; ``"noxattn"``, all
    but cross-attention, time embedding and output layers; ``"notime"``, all but the last two; ``"xlayer"`` and
    ``"selflayer"``, two attention layers of Stable Diffusion; ``"kv"``, keys and values of the cross-attention.
    ESD-x is ``"xattn"``, ESD-u ``"noxattn"``, ESD-x-strict ``"kv"``.

    Args:
        model: The model.
        trainable: One of these; ``"text_encoder"``, the same as ``TextEncoderWeights()``; a ``TextEncoderWeights`` or a
            dict of its arguments; or ``"all"``, every weight of the UNet and the text encoder.
        compat: ``"ldm"``, the subsets of the original code; or ``"diffusers"``, those of ESD's newer code: weights of
            linear layers and convolutions only, and ``"noxattn"`` with time embedding and output layers.

    Returns:
        Parameters by name; never none.

    Raises:
        ValueError: If there is no such subset, or it is empty.
    """
    if trainable == "text_encoder":
        trainable = TextEncoderWeights()
    elif isinstance(trainable, dict):
        trainable = TextEncoderWeights(**trainable)
    one_of("compat", compat, Compat)
    if isinstance(trainable, TextEncoderWeights):
        chosen = _of_text_encoder(model.text_encoder, trainable)
    elif trainable == "all":
        chosen = _named("unet", model.unet) | _named("text_encoder", model.text_encoder)
    else:
        chosen = _of_unet(model.unet, trainable, compat)
    if not chosen:
        raise ValueError(
            f"trainable={trainable!r} selects no weight of this model, so nothing would train. The UNet has "
            f"{len(model.unet.down_blocks)} down blocks; 'xlayer' and 'selflayer' are those of Stable Diffusion's four."
        )
    return chosen


def kv_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """The layers that make keys and values of text states, in order: ``attn2.to_k`` and ``attn2.to_v`` of each block.

    Raises:
        ValueError: If there are none.
    """
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear) and _KV.search(f"{n}.")}
    if not layers:
        raise ValueError(f"{type(unet).__name__} has no layer attn2.to_k or attn2.to_v: it attends to no text.")
    return layers


def _of_unet(unet: nn.Module, subset: str, compat: Compat) -> dict[str, nn.Parameter]:
    rules = {
        "full": lambda n: True,
        "xattn": lambda n: "attn2" in n,
        "selfattn": lambda n: "attn1" in n,
        "noxattn": lambda n: "attn2" not in n and not n.startswith(_TIME_AND_OUT),
        "notime": lambda n: not n.startswith(_TIME_AND_OUT),
        "xlayer": lambda n: "attn2" in n and n.startswith(_XLAYER),
        "selflayer": lambda n: "attn1" in n and n.startswith(_SELFLAYER),
        "kv": lambda n: _KV.search(n) is not None,
    }
    if compat == "diffusers":
        layers = tuple(f"{n}." for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
        rules = {name: rules[name] for name in ("full", "xattn", "kv")} | {"noxattn": lambda n: "attn2" not in n}
    if subset not in rules:
        raise ValueError(
            f"trainable must be one of {sorted(rules)}, 'text_encoder', 'all' or TextEncoderWeights with "
            f"compat={compat!r}, but got {subset!r}."
        )
    return {
        f"unet.{name}": parameter
        for name, parameter in unet.named_parameters()
        if rules[subset](name) and (compat == "ldm" or name.startswith(layers))
    }


def _of_text_encoder(encoder: nn.Module, subset: TextEncoderWeights) -> dict[str, nn.Parameter]:
    matches = {name: _LAYER.search(name) for name, _ in encoder.named_parameters()}
    known = {int(match[1]) for match in matches.values() if match}
    unknown = sorted(set(subset.layers or ()) - known)
    if unknown:
        raise ValueError(f"The text encoder has {len(known)} layers, counted from 0, but layers={subset.layers}.")
    whole = subset.layers is None and subset.component == "all"
    norm = whole if subset.norm is None else subset.norm

    def chosen(name: str) -> bool:
        match = matches[name]
        if match is None:
            return norm and "final_layer_norm." in name
        in_layer = subset.layers is None or int(match[1]) in subset.layers
        return in_layer and match[2].startswith(_COMPONENTS[subset.component])

    return {f"text_encoder.{name}": p for name, p in encoder.named_parameters() if chosen(name)}


def _named(prefix: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}
