"""Pipeline folders in the layout of released models, which earlier versions of transformers open as well."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.files import replacing, write_text
from lightning_unlearn.core.lightning import rank_zero_warn

__all__ = ["SafetyChecker", "half_type", "prefixed", "save_folder"]

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
_INDEX = "model_index.json"
_CHECKER = ("safety_checker", "feature_extractor")
_ADDED = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


@dataclass(frozen=True)
class SafetyChecker:
    """The safety checker of a pipeline that was opened without it.

    Args:
        model: Folder or hub id of the pipeline.
        entries: The entries of its index that describe the checker.
    """

    model: str
    entries: dict[str, Any]

    @classmethod
    def of(cls, model: str, index: dict[str, Any]) -> SafetyChecker | None:
        """The checker that the index of a pipeline names, if any."""
        if (index.get("safety_checker") or [None])[0] is None:
            return None
        names = (*_CHECKER, "requires_safety_checker")
        return cls(model, {name: index[name] for name in names if name in index})

    def copy_to(self, folder: Path) -> None:
        """Copy it into the folder of another pipeline, or say that this has none."""
        source = Path(self.model)
        if not list(source.glob("safety_checker/*.safetensors")):
            rank_zero_warn(
                f"{self.model} has a safety checker, which was not loaded, and {folder} has none: "
                f"{'its weights are not in safetensors files' if source.is_dir() else 'it is not a local folder'}. Who "
                "is to have it opens the folder by StableDiffusionPipeline.from_pretrained(folder, safety_checker="
                f"StableDiffusionSafetyChecker.from_pretrained({self.model!r}, subfolder='safety_checker'))."
            )
            return
        for name in _CHECKER:
            if (source / name).is_dir() and (source / name).resolve() != (folder / name).resolve():
                shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        write_text(folder / _INDEX, json.dumps(index | self.entries, indent=2) + "\n")


def save_folder(
    pipeline: Any, folder: str | Path, variant: str | None = None, checker: SafetyChecker | None = None
) -> None:
    """Write a pipeline as ``save_pretrained`` does, for versions 4 and 5 of transformers.

    The weights of text encoder and safety checker get the names that released models use, which version 5 still reads
    but no longer writes. The tokenizer has ``vocab.json`` and ``merges.txt`` beside ``tokenizer.json``.

    Args:
        pipeline: A ``StableDiffusionPipeline``.
        folder: Where to; made if missing.
        variant: Suffix in the names of the files. With ``"fp16"`` and ``"bf16"``, weights are saved in that type.
        checker: The safety checker of the pipeline that it was made from.
    """
    folder = Path(folder)
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant)
    if checker is not None and pipeline.safety_checker is None:
        checker.copy_to(folder)
    renames = {"text_encoder": prefixed("text_model."), "safety_checker": prefixed("vision_model.", "vision_model.")}
    dtype = half_type(variant)
    for part in ("text_encoder", "unet", "vae", "safety_checker"):
        for file in (folder / part).glob("*.safetensors"):
            _rewrite(file, renames.get(part, str), dtype if part != "safety_checker" else None)
    if dtype is not None:
        _update(folder / "text_encoder" / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
    if (folder / "tokenizer" / "tokenizer.json").is_file():
        _write_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    # Without torchvision, version 5 has an image processor of another name, which version 4 does not know.
    extractor = [name and name.removesuffix("Pil").removesuffix("Fast") for name in index["feature_extractor"]]
    _update(folder / _INDEX, {"feature_extractor": extractor})
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o666 & ~mask)  # they are written for their owner only


def half_type(variant: str | None) -> torch.dtype | None:
    """The type of the numbers in files of a variant, where its name says that it is one of half precision."""
    return _HALF.get(variant or "")


def prefixed(prefix: str, within: str = "") -> Callable[[str], str]:
    """A function that adds a prefix to the names of weights that lack it, where they begin with ``within``."""

    def rename(name: str) -> str:
        inner = name.removeprefix(within)
        if not name.startswith(within) or inner.startswith(prefix):
            return name
        return f"{within}{prefix}{inner}"

    return rename


def _rewrite(file: Path, rename: Callable[[str], str], dtype: torch.dtype | None) -> None:
    """Give weights other names, and their floating-point numbers another type; no work where nothing changes."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
    if dtype is None and all(rename(name) == name for name in names):
        return

    def cast(value: Tensor) -> Tensor:
        return value if dtype is None or not value.is_floating_point() else value.to(dtype)

    weights = {rename(name): cast(value) for name, value in load_file(file).items()}
    with replacing(file) as part:
        save_file(weights, part, metadata={"format": "pt"})


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Add the files of a tokenizer that earlier versions read."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    added = {str(i): {key: getattr(t, key) for key in _ADDED} for i, t in tokenizer.added_tokens_decoder.items()}
    _update(folder / "tokenizer_config.json", {"added_tokens_decoder": added}, drop=("is_local", "local_files_only"))
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")


def _update(file: Path, values: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) | values
    kept = {name: value for name, value in known.items() if name not in drop}
    write_text(file, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
