"""Relearning: a copy is trained, the attacked model is left alone, and a control is attacked likewise."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_unlearn
from lightning_unlearn.relearning import (
    AnamnesisIndex,
    RelearningAttack,
    RelearningCurve,
    anamnesis_index,
    relearn_time,
)

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class Net(LightningModule):
    """Batch normalization and dropout: both behave otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def loader(rows: int = 12, **options: Any) -> DataLoader:
    inputs = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=5, **options)


def mean_nll(module: Net, rows: DataLoader) -> float:
    x, y = rows.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(module.eval()(x), y).item()


def test_a_copy_is_trained_and_the_model_is_left_alone() -> None:
    module = net()
    module.layers[1].eval()
    modes = [child.training for child in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    attack = RelearningAttack(SGD, max_steps=60)
    with torch.inference_mode():
        curve = attack(module, loader(shuffle=True))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [child.training for child in module.modules()]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert curve.steps == list(range(61))
    assert curve.values[0] == pytest.approx(mean_nll(module, loader()))
    assert curve.values[-1] < 0.7 < curve.values[0]
    assert curve == attack(module, loader(shuffle=True))


def test_measuring_less_often_changes_nothing_that_is_trained() -> None:
    fine = RelearningAttack(SGD, max_steps=30)(net(), loader(shuffle=True))
    coarse = RelearningAttack(SGD, max_steps=30, every_n_steps=7)(net(), loader(shuffle=True))
    assert coarse.steps == [0, 7, 14, 21, 28, 30]
    assert coarse.values == [fine.values[step] for step in coarse.steps]


def test_the_attack_is_plain_training() -> None:
    """Without dropout, shuffling and batch normalization, these are the steps of a loop written out."""
    module, plain = (torch.nn.Linear(4, 3) for _ in range(2))
    plain.load_state_dict(module.state_dict())

    class Linear(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    curve = RelearningAttack(SGD, max_steps=6, every_n_steps=3)(Linear(), loader())
    optimizer, values = SGD(plain.parameters()), []
    for _ in range(2):
        values.append(mean_nll(plain, loader()))  # type: ignore[arg-type]
        for x, y in loader():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
    values.append(mean_nll(plain, loader()))  # type: ignore[arg-type]
    assert curve.values == pytest.approx(values)


def test_the_control_is_attacked_as_it_would_be_alone() -> None:
    attack = RelearningAttack(SGD, max_steps=10, every_n_steps=5)
    curve = attack(net(0), loader(shuffle=True), control=net(1))
    assert curve.control == attack(net(1), loader(shuffle=True))
    assert (curve.steps, curve.values) == (lambda alone: (alone.steps, alone.values))(
        attack(net(0), loader(shuffle=True))
    )


def test_few_rows_are_trained_on_and_all_are_measured() -> None:
    class Counting(Net):
        seen: list[Tensor]

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                Counting.seen.append(x)
            return self.layers(x)

    Counting.seen = []
    torch.manual_seed(0)
    module = Counting()
    curve = RelearningAttack(SGD, max_steps=6, every_n_steps=6, rows=7)(module, loader())
    assert curve.values[0] == pytest.approx(mean_nll(module, loader()))
    assert [len(x) for x in Counting.seen] == [5, 2] * 3
    assert len(torch.cat(Counting.seen).unique(dim=0)) == 7

    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(loader().dataset)

    with pytest.raises(ValueError, match="map-style dataset"):
        RelearningAttack(SGD, rows=7)(net(), DataLoader(Stream(), batch_size=5))


def test_a_metric_of_ones_own_is_read_in_evaluation_mode() -> None:
    modes: list[bool] = []

    def metric(module: LightningModule) -> float:
        modes.append(module.training)
        return float(len(modes))

    curve = RelearningAttack(SGD, max_steps=4, every_n_steps=2, metric=metric)(net(), loader())
    assert curve.values == [1.0, 2.0, 3.0]
    assert modes == [False, False, False]


def test_relearn_time_is_the_first_measurement_at_the_target() -> None:
    whole = RelearningAttack(SGD, max_steps=60)(net(), loader(shuffle=True))
    time = relearn_time(whole, 0.7)
    assert time.reached
    assert 0 < time.steps < 60
    assert all(value > 0.7 for value in whole.values[: time.steps])
    assert time.loss == whole.values[time.steps] <= 0.7
    short = RelearningAttack(SGD, max_steps=60, stop_at=0.7)(net(), loader(shuffle=True))
    assert (short.steps[-1], short.values) == (time.steps, whole.values[: time.steps + 1])
    assert relearn_time(whole, 100.0).steps == 0
    assert RelearningAttack(SGD, stop_at=100.0)(net(), loader()).steps == [0]
    never = relearn_time(RelearningAttack(SGD, max_steps=4)(net(), loader()), 1e-6)
    assert (never.steps, never.reached) == (4, False)


def test_the_anamnesis_index_compares_the_times() -> None:
    retrained = RelearningCurve([0, 10, 20], [0.9, 0.6, 0.3])
    curve = RelearningCurve([0, 5, 10], [0.9, 0.3, 0.2], retrained)
    assert anamnesis_index(curve, 0.5) == 0.25
    index = AnamnesisIndex()
    index.update(curve, 0.5)
    index.update(curve, 0.5)
    assert (index.compute().mean, index.compute().n) == (0.25, 2)


@pytest.mark.parametrize(
    ("curve", "target", "message"),
    [
        (RelearningCurve([0], [0.1]), 0.5, "no control"),
        (RelearningCurve([0, 4], [0.9, 0.8], RelearningCurve([0, 4], [0.9, 0.1])), 0.5, "unlearned model did not"),
        (RelearningCurve([0, 4], [0.9, 0.1], RelearningCurve([0, 4], [0.9, 0.8])), 0.5, "retrained model did not"),
        (RelearningCurve([0, 4], [0.9, 0.1], RelearningCurve([0], [0.4])), 0.5, "choose a smaller target"),
        (RelearningCurve([0], [0.1]), 0.0, "target must be greater than 0|no control"),
    ],
)
def test_an_index_without_both_times_is_an_error(curve: RelearningCurve, target: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anamnesis_index(curve, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"rows": 0}, "rows must be at least 1"),
    ],
)
def test_bad_settings_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelearningAttack(SGD, **options)
    with pytest.raises(ValueError, match="gave no batch"):
        RelearningAttack(SGD)(net(), [])


def test_the_names_are_at_the_top() -> None:
    for name in ("RelearningAttack", "relearn_time", "anamnesis_index"):
        assert getattr(lightning_unlearn, name) is getattr(lightning_unlearn.relearning, name)
