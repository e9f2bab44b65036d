"""Folders that a model is exported to."""

from __future__ import annotations

from pathlib import Path

__all__ = ["check_target", "remove_old_index"]

_READ_TOO = ("adapter_config.json", "adapter_model*", "pytorch_model*")


def check_target(folder: str | Path) -> None:
    """Refuse a folder with weights that readers take on top of those of an export, or in their place.

    Args:
        folder: Where a model is to be written; it need not exist.

    Raises:
        FileExistsError: If it has an adapter or pickled weights.
    """
    found = sorted({file.name for pattern in _READ_TOO for file in Path(folder).glob(pattern)})
    if found:
        raise FileExistsError(
            f"{folder} has {', '.join(found)}, which would stay beside the exported weights: readers may take them on "
            "top of these, or in their place. Give a new folder, or remove them."
        )


def remove_old_index(folder: str | Path) -> None:
    """Remove the index of shards that an export in one file has replaced.

    Args:
        folder: Where a model was written.
    """
    if (Path(folder) / "model.safetensors").is_file():
        (Path(folder) / "model.safetensors.index.json").unlink(missing_ok=True)
