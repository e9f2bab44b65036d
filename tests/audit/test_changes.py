from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_unlearn.audit.changes import WeightChanges, weight_changes


def folder(path: Path, **tensors: torch.Tensor) -> Path:
    path.mkdir()
    save_file({name.replace("__", "."): value for name, value in tensors.items()}, path / "model.safetensors")
    return path


def test_changes_by_layer(tmp_path: Path) -> None:
    same = {"layers__1__w": torch.ones(2), "head": torch.ones(4)}
    before = folder(tmp_path / "a", layers__0__w=torch.tensor([3.0, 4.0]), **same)
    after = folder(tmp_path / "b", layers__0__w=torch.tensor([3.0, 4.5]), **same)
    changes = weight_changes(before, after)
    assert isinstance(changes, WeightChanges)
    assert changes.share == 1 / 8
    assert changes.layers == {"0": (0.5, 0.1), "1": (0.0, 0.0), "other": (0.0, 0.0)}
    assert changes.relative == pytest.approx(0.5 / 31**0.5)  # of 25 + 2 + 4


def test_what_can_not_be_compared_says_why(tmp_path: Path) -> None:
    here = folder(tmp_path / "a", w=torch.ones(2))
    assert "original model is not a folder" in str(weight_changes(tmp_path / "model.gguf", here))
    assert "different shape" in str(weight_changes(here, folder(tmp_path / "b", w=torch.ones(3))))
    assert "no tensor name" in str(weight_changes(here, folder(tmp_path / "c", v=torch.ones(2))))
