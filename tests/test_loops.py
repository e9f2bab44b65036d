"""The loop of docs/loops.md, which has no Trainer, trains the weights of a Trainer with NPO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import NPO, from_predictions
from lightning_unlearn.core.scores import Predictions
from tests.helpers import trainer, weights

PAGE = Path(__file__).parents[1] / "docs" / "loops.md"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def loaders() -> dict[str, DataLoader]:
    generator = torch.Generator().manual_seed(1)
    sets = {}
    for role in ("forget", "retain"):
        inputs = torch.randn(12, 4, generator=generator)
        labels = torch.randint(3, (12,), generator=generator)
        sets[role] = DataLoader(TensorDataset(inputs, labels, torch.arange(12)), batch_size=4)
    return sets


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@from_predictions
def nll(module: Any, batch: Any) -> Predictions:
    return Predictions(module(batch[0]), batch[1], torch.arange(len(batch[1])), len(batch[1]))


def test_the_loop_trains_what_a_trainer_trains() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    rows = loaders()
    names: dict[str, Any] = {"model": model(), "forget_loader": rows["forget"], "retain_loader": rows["retain"]}
    exec(compile(code, str(PAGE), "exec"), names)

    module = Module()
    trained = weights(module.net)
    trainer(NPO(beta=0.1, score=nll), max_epochs=3).fit(module, loaders())
    assert (weights(module.net) - trained).abs().max() > 0.01
    torch.testing.assert_close(weights(names["model"]), weights(module.net), rtol=0, atol=1e-6)
