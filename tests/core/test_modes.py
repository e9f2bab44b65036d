"""Modes and weights that are other ones for a while, and come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_unlearn.core.modes import evaluation_mode
from lightning_unlearn.core.reference import exchanged


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)), nn.Linear(3, 1))


class Remembers(nn.Module):
    """Does more than its base class when it changes its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []
        self.inner = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> Remembers:
        self.modes.append(mode)
        return super().train(mode)

    def forward(self, x: Any) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("kind", ["plain", "scripted", "compiled", "with a mode of its own"])
def test_every_part_is_in_evaluation_and_comes_back(kind: str) -> None:
    module = net()
    module[1][0].eval()
    own = Remembers()
    if kind == "scripted":
        module[2] = torch.jit.trace(module[2], torch.ones(1, 3))
    elif kind == "compiled":
        module[2] = torch.compile(module[2], backend="eager")  # type: ignore[assignment]
    elif kind == "with a mode of its own":
        module.append(own)
    before = [child.training for child in module.modules()]
    assert len(set(before)) == 2
    with evaluation_mode(module):
        assert not any(child.training for child in module.modules())
    assert [child.training for child in module.modules()] == before
    assert own.modes == ([False] if kind == "with a mode of its own" else [])


def test_modes_come_back_after_an_error() -> None:
    module = net()
    with pytest.raises(RuntimeError, match="within"), evaluation_mode(module):
        raise RuntimeError("within")
    assert all(child.training for child in module.modules())


def test_tied_weights_and_buffers_are_exchanged_once() -> None:
    module = net()
    module.add_module("again", module[0])
    start = {name: value.clone() for name, value in module.state_dict().items()}
    values = {"0.weight": torch.full((3, 2), 7.0), "1.1.running_mean": torch.full((3,), 5.0)}
    with exchanged(module, values):
        assert (module[0].weight == 7).all()
        assert (module.again.weight == 7).all()
        assert (module[1][1].running_mean == 5).all()
        assert torch.equal(values["0.weight"], start["0.weight"])
    for name, value in module.state_dict().items():
        assert torch.equal(value, start[name])
    assert (values["0.weight"] == 7).all()
