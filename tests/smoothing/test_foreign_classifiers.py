"""Classifiers of other makes, whose forget term is smoothed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    NPO,
    SAM,
    CurvatureRegularization,
    GradDiff,
    GradientPenalty,
    QuantizationAware,
    RandomizedSmoothing,
    UnlearnWeightAveraging,
    classifier_nll,
)
from tests.helpers import Recorder, same, trainer, weights

STRATEGIES: dict[str, Callable[[float], Any]] = {
    "SAM": lambda size: SAM(rho=size),
    "RandomizedSmoothing": lambda size: RandomizedSmoothing(sigma=size),
    "GradientPenalty": lambda size: GradientPenalty(coef=size),
    "GradientPenalty by differences": lambda size: GradientPenalty(coef=size, mode="finite_difference"),
    "CurvatureRegularization": lambda size: CurvatureRegularization(coef=size),
    "CurvatureRegularization by differences": lambda size: CurvatureRegularization(coef=size, mode="finite_difference"),
}
PASSES_AT_THE_WEIGHTS = {name: 0 if name == "RandomizedSmoothing" else 1 for name in STRATEGIES}


class Block(nn.Module):
    """A residual block with batch normalization."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.Conv2d(out, out, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))
        self.skip = nn.Conv2d(wide, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(inner)) + self.skip(x)).relu()


class ResNet(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(1, 4), Block(4, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((-1, -2)))


class Recurrent(nn.Module):
    """A recurrent network, which keeps a second list of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, 0])[0][:, -1])


class Centred(nn.Module):
    """Subtracts a running centre, a buffer that each pass replaces by another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, 8), nn.Linear(8, 3)
        self.register_buffer("centre", torch.zeros(8))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x.flatten(1)).tanh()
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * hidden.detach().mean(0)
            self.passes = self.passes + 1
        return self.head(hidden - self.centre)


class Bert(nn.Module):
    """The classifier of transformers, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(vocab_size=32, num_labels=3, max_position_embeddings=16, **sizes, **none)
        self.model = BertForSequenceClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=(5 * x[:, 0, 0]).abs().long().clamp(max=31)).logits


NETS: dict[str, type[nn.Module]] = {"ResNet": ResNet, "GRU": Recurrent, "BERT": Bert}


class LitUser(L.LightningModule):
    """A user's classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def user(kind: type[nn.Module]) -> LitUser:
    torch.manual_seed(0)
    return LitUser(kind())


def fit(kind: type[nn.Module], *callbacks: Any, objective: Any = GradDiff) -> LitUser:
    module, generator = user(kind), torch.Generator().manual_seed(0)
    data = {}
    for role in ("forget", "retain"):
        images, labels = torch.randn(8, 1, 8, 8, generator=generator), torch.randint(3, (8,), generator=generator)
        data[role] = DataLoader(TensorDataset(images, labels), batch_size=4)
    trainer(objective(score=classifier_nll), *callbacks, max_epochs=2).fit(module, data)
    return module


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("net", NETS)
def test_it_trains_smoothed_and_its_checkpoint_is_the_users(net: str, strategy: str, tmp_path: Path) -> None:
    path, kind = tmp_path / "run.ckpt", NETS[net]
    plain = fit(kind, objective=NPO)
    without = fit(kind, STRATEGIES[strategy](0.0), objective=NPO)
    torch.testing.assert_close(weights(without), weights(plain), atol=1e-6, rtol=0)
    save = Recorder(on_train_end=lambda run, _: run.save_checkpoint(path))
    smoothed = fit(kind, STRATEGIES[strategy](0.1), save, objective=NPO)
    assert weights(smoothed).isfinite().all()
    assert (weights(smoothed) - weights(plain)).abs().max() > 1e-6
    again = user(kind)
    again.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    assert same(again, smoothed)
    assert not {"training_step", "log"} & vars(smoothed).keys()


@pytest.mark.parametrize("objective", [NPO, GradDiff])
def test_a_buffer_that_is_replaced_takes_in_what_running_statistics_do(objective: Any) -> None:
    """Both rows of a plain step share a pass; smoothed, only the pass at the weights as they are counts."""
    assert fit(Centred, objective=objective).net.passes == 4  # also NPO, which compares with its reference before
    for name, make in STRATEGIES.items():
        module = fit(Centred, make(0.1), objective=objective)
        assert module.net.passes == 4 * (1 + PASSES_AT_THE_WEIGHTS[name]), name
    assert fit(Centred, QuantizationAware(), objective=objective).net.passes == 8
    assert fit(Centred, QuantizationAware(weight=1.0), objective=objective).net.passes == 4


def test_an_average_of_a_residual_network_has_the_statistics_of_its_weights() -> None:
    averaged = fit(ResNet, UnlearnWeightAveraging(start_step=2, every_n_steps=1))
    assert not same(averaged, fit(ResNet))
    assert averaged.net.blocks[0].norms[0].num_batches_tracked == 2  # the batches of retain rows
