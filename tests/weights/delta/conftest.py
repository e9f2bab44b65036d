"""A delta file, and the models it lies between."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.weights.delta.models import move


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    return tmp_path / "delta.safetensors"


@pytest.fixture
def models(tiny_lm: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a base model and of one in which a tenth of the weights of each MLP has moved."""
    from transformers import AutoModelForCausalLM

    base, unlearned = tmp_path / "base", tmp_path / "unlearned"
    shutil.copytree(tiny_lm, base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name:
                weight.copy_(move(weight, 0.1))
    model.save_pretrained(unlearned)
    return base, unlearned


@pytest.fixture
def sharded(models: tuple[Path, Path], tmp_path: Path) -> Path:
    """The base model in several files with an index."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(models[0]).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder
