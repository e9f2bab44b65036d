"""Mask files in the safetensors format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_unlearn.functional.saliency.bits import pack_mask, unpack_mask

__all__ = ["load_mask", "read_mask_file", "write_mask_file"]

_FORMAT = "lightning-unlearn mask 1"


def load_mask(path: str | Path) -> dict[str, Tensor]:
    """Read a mask that `WeightMask.save_mask` wrote.

    Args:
        path: The file.

    Returns:
        Boolean masks by parameter name; ``True`` may move.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a mask file, or not what was written.
    """
    return read_mask_file(path)[0]


def write_mask_file(path: str | Path, masks: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write whole masks, one bit a weight, with what they were made by and a hash of both names and bits."""
    save_file = _safetensors().save_file
    packed = {name: pack_mask(mask) for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    metadata = {"format": _FORMAT, "settings": json.dumps(dict(settings)), "shapes": json.dumps(shapes)}
    save_file(packed, str(path), {**metadata, "sha256": _hash(packed, shapes)})


def read_mask_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole masks of a file, and the settings they were made by."""
    safe_open = _safetensors().safe_open
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no mask file {path} (looked in {Path.cwd()}).")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} can't be read as a safetensors file ({error}). Write it with save_mask.") from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a mask file. Write one with save_mask of a mask callback.")
    shapes = json.loads(metadata["shapes"])
    if metadata["sha256"] != _hash(packed, shapes):
        raise ValueError(f"{path} is not what save_mask wrote: its hash differs. Make it again.")
    masks = {name: unpack_mask(packed[name], tuple(shape)) for name, shape in shapes.items()}
    return masks, json.loads(metadata["settings"])


def _hash(packed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name}\0{shapes.get(name)}\0".encode())
        digest.update(packed[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError('Mask files are safetensors files: pip install "lightning-unlearn[llm]"') from None
    return safetensors.torch
