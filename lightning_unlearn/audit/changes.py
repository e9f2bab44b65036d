"""Weights that differ between two models, read from their files."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["WeightChanges", "weight_changes"]

_LAYER = re.compile(r"\b(?:layers|h|blocks|block)\.(\d+)\.")


class WeightChanges(NamedTuple):
    """What an unlearning run changed.

    Args:
        share: Share of the numbers that are not equal bit by bit.
        relative: Length of the difference by the length of the weights before.
        layers: The same two by decoder layer; ``"other"`` is embeddings, norms and the head.
        parameters: Numbers that were compared.
    """

    share: float
    relative: float
    layers: dict[str, tuple[float, float]]
    parameters: int


def weight_changes(before: Any, after: Any) -> WeightChanges | str:
    """Compare the weights of two folders, tensor by tensor, so that neither model is in memory.

    Args:
        before: The model before the run.
        after: The model after it.

    Returns:
        What differs, or the reason why that can't be told.
    """
    folders = []
    for name, source in (("original", before), ("unlearned", after)):
        if isinstance(source, nn.Module):
            return f"the {name} model is a live module, not a folder"
        folder = Path(str(source)).expanduser()
        if not (folder.is_dir() and any(folder.glob("*.safetensors"))) or (folder / "adapter_config.json").is_file():
            return f"the {name} model is not a folder of safetensors files with whole weights"
        folders.append(folder)
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(4, dtype=torch.float64))
    for name, first, second in _pairs(*folders):
        if first.shape != second.shape:
            return f"{name} has a different shape in each model"
        difference, layer = second.double() - first.double(), _LAYER.search(name)
        sums = [(difference != 0).sum(), difference.square().sum(), first.double().square().sum()]
        changed, moved, length = (float(value) for value in sums)
        row = torch.tensor([changed, difference.numel(), moved, length], dtype=torch.float64)
        totals[layer[1] if layer else "other"] += row
    if not totals:
        return "the two models have no tensor name in common"
    layers = {
        name: _shares(totals[name]) for name in sorted(totals, key=lambda name: (name == "other", len(name), name))
    }
    whole = torch.stack(list(totals.values())).sum(0)
    return WeightChanges(*_shares(whole), layers, int(whole[1]))


def _pairs(before: Path, after: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    from safetensors import safe_open

    owners = []
    for folder in (before, after):
        opened = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        owners.append({name: file for file in opened for name in file.keys()})  # noqa: SIM118
    for name in sorted(owners[0].keys() & owners[1].keys()):
        yield name, owners[0][name].get_tensor(name), owners[1][name].get_tensor(name)


def _shares(sums: Tensor) -> tuple[float, float]:
    changed, count, difference, length = sums.tolist()
    return changed / count, math.sqrt(difference / length) if length else 0.0
