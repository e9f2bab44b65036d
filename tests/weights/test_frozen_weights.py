"""Frozen weights in runs where something other than an update writes to the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_unlearn import RandomMask, SimNPO, classifier_nll
from tests.helpers import bits, trainer
from tests.user_module import LitNet, loaders, seeded


class Clamps(LitNet):
    """Keeps its weights in a range, after each batch."""

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.clamp_(-0.1, 0.1)


class Averages(LitNet):
    """Ends with an average of its own."""

    def on_train_start(self) -> None:
        self.average = [p.detach().clone() for p in self.parameters()]

    def on_train_batch_end(self, *_: Any) -> None:
        for average, parameter in zip(self.average, self.parameters(), strict=True):
            average.mul_(0.9).add_(parameter.detach(), alpha=0.1)

    def on_train_end(self) -> None:
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters(), strict=True):
                parameter.copy_(average)


class TwoCopies(torch.optim.Optimizer):
    """An optimizer that trains weights between two points, and evaluates at one of them."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            for parameter, point in self._points():
                point.sub_(parameter.grad + 0.1 * parameter, alpha=0.1)
                parameter.lerp_(point, 0.5)
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        for parameter, point in self._points():
            parameter.copy_(point)

    def _points(self) -> Iterator[tuple[Any, Tensor]]:
        for parameter in self.param_groups[0]["params"]:
            yield parameter, self.state[parameter].setdefault("point", parameter.detach().clone())


class ScheduleFree(LitNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return TwoCopies(self.parameters(), lr=0.1)

    def on_train_end(self) -> None:
        self.optimizers().optimizer.eval()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Clamps, Averages, ScheduleFree])
def test_they_are_as_before_and_a_warning_names_one(kind: Callable[..., LitNet], tmp_path: Path) -> None:
    module, mask = seeded(kind), RandomMask(0.5)  # type: ignore[arg-type]
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    run = trainer(SimNPO(score=classifier_nll), mask, kept, max_epochs=3, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"RandomMask froze weights that were moved other than by an update, such as"):
        run.fit(module, loaders())
    states = [dict(module.named_parameters())]
    states += [torch.load(file, weights_only=True)["state_dict"] for file in tmp_path.glob("*.ckpt")]
    assert len(states) > 10
    for state in states:
        assert all(torch.equal(bits(state[name])[~live], bits(start[name])[~live]) for name, live in mask.masks.items())
        assert any((state[name] != start[name]).any() for name in start)
