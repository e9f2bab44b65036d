"""Export of a text encoder, and its import into other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import full_tensor, rank
from lightning_unlearn.diffusion.engine.model import refuse_adapters

__all__ = ["Layout", "export_text_encoder", "load_text_encoder"]

Layout = Literal["transformers4", "transformers5"]

_FILE = "model.safetensors"
_PREFIX = "text_model."
_SETTINGS = ("hidden_act", "num_attention_heads", "layer_norm_eps")  # that weights of the same shape don't show


def export_text_encoder(module: Any, folder: str | Path, layout: Layout = "transformers4") -> None:
    """Write a text encoder for use in other models, as ``config.json`` and ``model.safetensors``.

    Any model with the same text encoder can use it: a concept that was erased from the text encoder of Stable Diffusion
    1.4 is then also erased from 1.5 and its descendants. ``CLIPTextModel.from_pretrained(folder)`` opens the folder, as
    does [`load_text_encoder`][lightning_unlearn.load_text_encoder]. The first process writes. Pipelines with
    ``clip_skip`` skip the last layers, and with them the erasure in these layers.

    Args:
        module: A LightningModule or a pipeline with a ``text_encoder``, or a ``CLIPTextModel``.
        folder: Where to; made if missing.
        layout: Names of the weights. ``"transformers4"`` has the prefix ``text_model.``, like the files of released
            models, and opens in all versions. ``"transformers5"`` has no prefix, as that version writes it; earlier
            versions would silently use random weights.

    Raises:
        ValueError: If there is no such layout, or a LoRA or another adapter is loaded.
        TypeError: If there is no CLIP text encoder.
    """
    one_of("layout", layout, Layout)
    refuse_adapters(module)
    encoder, prefix = _text_encoder(module), _PREFIX if layout == "transformers4" else ""
    if rank() != 0:
        return
    from safetensors.torch import save_file

    weights = {
        f"{prefix}{name}": full_tensor(value).contiguous() for name, value in _plain(encoder.state_dict()).items()
    }
    encoder.config.save_pretrained(folder)
    save_file(weights, Path(folder) / _FILE, metadata={"format": "pt"})


def load_text_encoder(module: Any, folder: str | Path) -> None:
    """Put the weights of an exported text encoder into a model, in either layout.

    The model's own text encoder keeps its place, precision and device; its values change only if all of them fit.

    Args:
        module: A LightningModule or a pipeline with a ``text_encoder``, or a ``CLIPTextModel``.
        folder: Folder with ``config.json`` and ``model.safetensors``, or a pipeline's folder with such a
            ``text_encoder``.

    Raises:
        FileNotFoundError: If there are no such files.
        TypeError: If there is no CLIP text encoder, or there are two.
        ValueError: If the weights are those of another architecture, or a LoRA or another adapter is loaded.
    """
    refuse_adapters(module)
    encoder = _text_encoder(module)
    source = Path(folder)
    if not (source / _FILE).is_file() and (source / "text_encoder").is_dir():
        source = source / "text_encoder"
    missing = [name for name in ("config.json", _FILE) if not (source / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source} has no {' and no '.join(missing)}. Pass a folder that export_text_encoder or save_pretrained "
            "wrote. Weights are read from safetensors only: convert a .bin with "
            "CLIPTextModel.from_pretrained(...).save_pretrained(...)."
        )
    from safetensors.torch import load_file

    settings = json.loads((source / "config.json").read_text())
    settings = settings.get("text_config", settings)
    weights, wanted = _plain(load_file(source / _FILE)), _plain(encoder.state_dict())
    odd = [
        f"{name} is {settings[name]!r} in the folder and {getattr(encoder.config, name)!r} in the model"
        for name in _SETTINGS
        if name in settings and settings[name] != getattr(encoder.config, name)
    ]
    odd += [f"the folder has no {name}" for name in sorted(wanted.keys() - weights.keys())]
    odd += [f"the model has no {name}" for name in sorted(weights.keys() - wanted.keys())]
    odd += [
        f"{name} has shape {tuple(weights[name].shape)} in the folder and {tuple(wanted[name].shape)} in the model"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    if odd:
        more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ValueError(
            f"The text encoder in {source} does not fit: {'; '.join(odd[:3])}{more}. It can only go into models with "
            "the text encoder that it was made from, such as CLIP ViT-L/14 in Stable Diffusion 1.x, and its tokenizer."
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(weights[name])


def _text_encoder(module: Any) -> Any:
    if getattr(module, "text_encoder_2", None) is not None:
        raise TypeError(
            f"{type(module).__name__} has two text encoders, and with one of them exchanged the other still knows the "
            "concept. Pass a model with one, such as Stable Diffusion 1.x or 2.x, or the encoder itself."
        )
    encoder = getattr(module, "text_encoder", module)
    kind = getattr(getattr(encoder, "config", None), "model_type", None)
    if not isinstance(encoder, nn.Module) or kind != "clip_text_model":
        raise TypeError(
            "A CLIP text encoder is needed: a CLIPTextModel, or a module or pipeline with one as text_encoder, but got "
            f"{type(encoder).__name__}{f' of type {kind!r}' if kind else ''}."
        )
    return encoder


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names without prefix; position ids, which older versions wrote, are no weights."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in state.items()
        if not name.endswith("embeddings.position_ids")
    }
