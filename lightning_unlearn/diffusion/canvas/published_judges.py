"""Reader of the published UnlearnCanvas classifiers: vision transformers with the weight names of timm."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.diffusion.canvas.classifier import CanvasClassifier
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges, HeadJudge
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS, CanvasNames, Kind

__all__ = ["published_judges"]

_HEAD_WIDTH = 64
"""Channels of an attention head in timm's tiny to large models; 16 heads in the large one."""

_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""The names of timm, and those of transformers 4, from which every version reads."""


def published_judges(
    style: str | Path,
    object: str | Path,
    names: CanvasNames = UNLEARN_CANVAS,
    classes: Mapping[Kind, Sequence[str]] | None = None,
) -> CanvasJudges:
    """The judges of UnlearnCanvas from their checkpoints, which ``transformers`` runs; timm is not needed.

    A checkpoint has the weights of ``vit_large_patch16_224`` as ``model_state_dict``, or on its own, with a head of 51
    styles or of 20 objects. Smaller ``vit_..._patch...`` models of timm with 64 channels per head are read as well.
    Only tensors are read from the files, never code.

    Args:
        style: Checkpoint of the styles, released as ``style50.pth``.
        object: Checkpoint of the objects, released as ``style50_cls.pth``.
        names: The styles and objects.
        classes: Names of the labels of each kind in the order of its head; by default the alphabetical one, in which
            the photos, ``Seed_Images``, are label 38 of 51.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no such checkpoint, or has a head of another size.

    References:
        Zhang et al., *UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
        Models*, arXiv:2402.11846.
    """
    labels: dict[Kind, Sequence[str]] = {"style": sorted(names.all_styles), "object": sorted(names.objects)}
    labels |= classes or {}
    files: dict[Kind, str | Path] = {"style": style, "object": object}
    judges = {
        kind: HeadJudge(_read(Path(path), kind, labels[kind]), kind, "unlearncanvas") for kind, path in files.items()
    }
    return CanvasJudges(judges["style"], judges["object"], names)


def _read(path: Path, kind: Kind, classes: Sequence[str]) -> CanvasClassifier:
    from transformers import ViTConfig, ViTModel

    weights = _weights(path)
    head = {name: weights.pop(f"head.{name}") for name in ("weight", "bias")}
    if len(head["bias"]) != len(classes):
        raise ValueError(
            f"{path} has a head of {len(head['bias'])} classes, but there are {len(classes)} {kind}s. The released "
            "style50.pth is that of the styles, and style50_cls.pth that of the objects."
        )
    width, patch = weights["pos_embed"].shape[2], weights["patch_embed.proj.weight"].shape[2]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        num_attention_heads=width // _HEAD_WIDTH,
        intermediate_size=len(weights["blocks.0.mlp.fc1.bias"]),
        image_size=isqrt(weights["pos_embed"].shape[1] - 1) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    open_model: Any = ViTModel.from_pretrained
    encoder, loaded = open_model(
        None, config=config, state_dict=_renamed(path, weights), add_pooling_layer=False, output_loading_info=True
    )
    if wrong := sorted(map(str, [*loaded["missing_keys"], *loaded["unexpected_keys"], *loaded["mismatched_keys"]])):
        raise ValueError(f"{path} is no vision transformer of timm's: its weights differ at {wrong[0]}.")
    network = CanvasClassifier(encoder, {kind: classes})
    network.heads[kind].load_state_dict(head)
    return network


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} has more than tensors, and code of a file is not run. Save its state dict alone: {error}"
        ) from None
    state = checkpoint.get("model_state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    weights = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.bias", "head.weight", "head.bias")
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"{path} has no weight {missing[0]!r}: it is no vision transformer of timm's with a head.")
    return weights


def _renamed(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of timm by the names of transformers, queries, keys and values apart."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        block, _, rest = name.removeprefix("blocks.").partition(".") if name.startswith("blocks.") else ("", "", name)
        where = f"encoder.layer.{block}." if block else ""
        part, _, leaf = rest.rpartition(".") if rest not in _NAMES else (rest, "", "")
        end = f".{leaf}" if leaf else ""
        if part == "attn.qkv":
            for query, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{where}attention.attention.{query}{end}"] = third
        elif part in _NAMES:
            renamed[f"{where}{_NAMES[part]}{end}"] = value
        else:
            raise ValueError(f"{path} has the weight {name!r}, which no plain vision transformer of timm's has.")
    return renamed
