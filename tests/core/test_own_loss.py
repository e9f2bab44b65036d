"""One warning where plain cross-entropy takes the place of the module's own loss, and no trace of the comparison."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unlearn import (
    SCRUB,
    FineTune,
    ForgetRetainDataModule,
    GradDiff,
    GradientAscent,
    LitClassifier,
    UGradSL,
    binary_nll,
    classifier_nll,
    training_step_loss,
)
from tests.helpers import trainer


class Own(L.LightningModule):
    """Counts, collects and measures in its training step, as users' modules do."""

    def __init__(self, loss: Any, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(5, outputs)
        nn.init.normal_(self.net.weight, std=2.0)  # smoothing shows where the model is sure
        self.loss, self.steps = loss, 0
        self.losses: list[float] = []
        self.by_step: dict[int, float] = {}
        self.accuracy = torchmetrics.MeanMetric()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        self.steps += 1
        self.losses.append(loss.item())
        self.by_step[self.steps] = loss.item()
        self.accuracy.update(loss.detach())
        self.log("train/accuracy", self.accuracy)
        self.log_dict({"train/loss": loss})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def rows(labels: Any = None) -> ForgetRetainDataModule:
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(24) % 3 if labels is None else labels(x)
    return ForgetRetainDataModule(TensorDataset(x[:8], y[:8]), TensorDataset(x[8:], y[8:]), batch_size=4)


def said(method: Any, module: L.LightningModule, data: Any = None, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(method, limit_val_batches=0, **options).fit(module, data or rows())
    return [str(w.message) for w in caught if "trains on" in str(w.message)]


OWN = {
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])),
    "summed": nn.CrossEntropyLoss(reduction="sum"),
}


@pytest.mark.parametrize("loss", OWN)
@pytest.mark.parametrize("method", [SCRUB, FineTune, UGradSL, lambda: GradientAscent(score=classifier_nll)])
def test_another_loss_is_said_once_and_the_module_does_not_notice(loss: str, method: Any) -> None:
    module = Own(OWN[loss])
    (message,) = said(method(), module, max_epochs=2)
    assert "classifier_nll" in message
    assert "Own.training_step" in message
    assert (module.steps, module.losses, module.by_step) == (0, [], {})
    assert module.accuracy._update_count == 0
    assert float(module.accuracy.weight) == 0


@pytest.mark.parametrize(
    ("method", "module", "data"),
    [
        (lambda: FineTune(), lambda: Own(nn.CrossEntropyLoss()), None),
        (lambda: UGradSL(), lambda: LitClassifier(nn.Linear(5, 3)), None),
        (lambda: GradDiff(score=training_step_loss), lambda: Own(OWN["smoothed"]), None),
        (
            lambda: FineTune(score=binary_nll),
            lambda: Own(nn.BCEWithLogitsLoss(), 3),  # a mean over rows and labels
            lambda x: (x[:, :3] > 0).float(),
        ),
    ],
)
def test_the_same_loss_is_not_spoken_of(method: Any, module: Any, data: Any) -> None:
    assert said(method(), module(), rows(data)) == []


def test_a_training_step_that_cannot_be_called_says_nothing() -> None:
    def fails(logits: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("needs a teacher")

    assert said(FineTune(), Own(fails)) == []
