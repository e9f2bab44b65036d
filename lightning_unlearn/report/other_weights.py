"""Weights beside those of a model in its folder, which may be those of before unlearning."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["other_weights", "unread_files"]

_UNREAD = (
    *(".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".npz", ".npy", ".pkl", ".pickle", ".tflite", ".nemo"),
    *(".distcp", ".bak", ".parquet", ".arrow", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z"),
)
"""Endings of files that `doctor` does not look into, and that may hold weights or rows."""


def unread_files(files: Sequence[Path]) -> list[Path]:
    """The files that may hold weights or rows, of a kind that `doctor` does not look into.

    Args:
        files: Files of a folder.
    """
    return [file for file in files if file.suffix.lower() in _UNREAD]


def other_weights(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Files with weights of the model of a folder, but with other numbers, and the name of a tensor that differs.

    Args:
        files: Files of a folder and of the folders in it.
    """
    pickled = [file for file in files if file.suffix == ".bin" and file.name.startswith("pytorch_model")]
    if not pickled:
        return
    from safetensors import SafetensorError, safe_open

    for file in pickled:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, OSError, pickle.UnpicklingError, EOFError):
            continue  # said where files are read one by one
        for model in (other for other in files if other.parent == file.parent and other.suffix == ".safetensors"):
            try:
                with safe_open(model, framework="pt") as opened:
                    shared = [name for name in opened.keys() if isinstance(state.get(name), Tensor)]  # noqa: SIM118
                    changed = next((n for n in shared if not _same(opened.get_tensor(n), state[n])), None)
            except (SafetensorError, OSError):
                continue
            if changed is not None:
                yield file, changed
                break


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other.dtype), other)
