"""Retraining is the module's own training on retain rows, from untrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn import BadTeacher, EUk, Retrain, classifier_nll
from lightning_unlearn.classification.untrained import untrained_values
from tests.helpers import save_resumable
from tests.user_module import LitNet, loaders, pairs, trainer, weights


class NormNet(LitNet):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.net = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)), nn.ReLU(), nn.Linear(16, 3))


class Bare(LitNet):
    """A layer without ``reset_parameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


class WeightNormed(LitNet):
    """A layer whose ``reset_parameters`` writes to a weight that is computed from others."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self.net[0])  # type: ignore[no-untyped-call]


class Pruned(LitNet):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.prune.l1_unstructured(self.net[0], "weight", 0.5)  # type: ignore[no-untyped-call]


class Codebook(LitNet):
    """A buffer that learns, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.net(self.scale * (x - self.mean))


def trained(cls: type[LitNet] = NormNet) -> LitNet:
    torch.manual_seed(7)
    module = cls()
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(3)
    return module


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_it_is_a_plain_run_of_an_untrained_module_on_retain_rows(options: dict[str, Any]) -> None:
    module, plain = trained(), NormNet()
    plain.load_state_dict(untrained_values(plain, seed=4))
    trainer(Retrain(seed=4), max_epochs=2, **options).fit(module, {"retain": pairs(12, 2)})
    trainer(max_epochs=2, **options).fit(plain, pairs(12, 2))
    assert equal(module, plain)


def test_forget_rows_are_not_read() -> None:
    one, other = trained(), trained()
    spoiled = loaders()
    spoiled["forget"].dataset.tensors[0].fill_(float("nan"))  # type: ignore[attr-defined]
    trainer(Retrain()).fit(one, loaders())
    trainer(Retrain()).fit(other, spoiled)
    assert equal(one, other)


def test_the_start_does_not_depend_on_what_was_trained() -> None:
    one, other = trained(), NormNet()
    for module in (one, other):
        trainer(Retrain(seed=2), max_epochs=2).fit(module, loaders())
    assert equal(one, other)


def test_a_score_in_place_of_the_training_step() -> None:
    one, other = trained(), trained()
    trainer(Retrain(), max_epochs=2).fit(one, loaders())
    trainer(Retrain(score=classifier_nll), max_epochs=2).fit(other, loaders())
    torch.testing.assert_close(weights(one), weights(other), atol=1e-6, rtol=0)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_goes_on_and_does_not_start_anew(epochs: int, tmp_path: Path) -> None:
    whole, half, resumed = trained(), trained(), trained()
    trainer(Retrain(), max_epochs=3).fit(whole, loaders())
    run = trainer(Retrain(), max_epochs=epochs)
    run.fit(half, loaders())
    save_resumable(run, tmp_path / "half.ckpt")
    trainer(Retrain(), max_epochs=3).fit(resumed, loaders(), ckpt_path=tmp_path / "half.ckpt")
    assert equal(resumed, whole)
    assert not equal(half, whole)


def test_module_init_serves_layers_without_reset_parameters() -> None:
    made: list[Bare] = []

    def module_init() -> Bare:
        made.append(Bare())
        return made[-1]

    module = trained(Bare)
    trainer(Retrain(module_init, seed=3)).fit(module, loaders())
    trainer().fit(made[0], loaders()["retain"])
    assert equal(module, made[0])

    twice = [untrained_values(module, 3, Bare) for _ in range(2)]
    assert all(torch.equal(twice[1][k], v) for k, v in twice[0].items())
    teacher = BadTeacher(module_init=Bare, seed=3)
    trainer(teacher).fit(module, loaders())
    assert all(torch.equal(teacher._untrained[k], v) for k, v in twice[0].items())


def other_net() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("cls", "method", "options", "message"),
    [
        (Bare, Retrain, {}, r"the module.*Bare.*reset_parameters.*pass module_init"),
        (Bare, BadTeacher, {}, "pass module_init"),
        *(
            (cls, method, {}, rf"does not initialize 'net\.0\.{name}'.*Pass module_init")
            for cls, name in ((WeightNormed, "weight_g"), (Pruned, "weight_orig"))
            for method in (Retrain, BadTeacher, lambda: EUk(layers=r"net\.0\."))
        ),
        (LitNet, lambda: Retrain(other_net), {}, "makes another module.*4 weights are missing"),
        (LitNet, lambda: BadTeacher(module_init=other_net), {}, "makes another module"),
        (
            LitNet,
            Retrain,
            {"strategy": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)},
            "ModelParallelStrategy shards",
        ),
    ],
)
def test_what_can_not_start_anew_is_refused(cls: Any, method: Any, options: dict[str, Any], message: str) -> None:
    module = cls()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=message):
        trainer(method(), **options).fit(module, loaders())
    assert torch.equal(weights(module), before)


def test_frozen_weights_need_a_module_init() -> None:
    module = trained(LitNet)
    module.net[0].requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"2 weights are frozen, such as 'net.0.weight'"):
        trainer(Retrain()).fit(module, loaders())
    trainer(Retrain(LitNet)).fit(module, loaders())
    assert torch.equal(module.net[0].weight, untrained_values(LitNet(), 0, LitNet)["net.0.weight"])


@pytest.mark.parametrize("cls", [WeightNormed, Pruned])
def test_what_is_not_to_be_reset_need_not_be_able_to(cls: Any) -> None:
    module = cls()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    trainer(EUk(layers=r"net\.3\.")).fit(module, loaders())
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"net.3.weight", "net.3.bias"}


def test_a_buffer_that_learns_needs_a_module_init() -> None:
    module = trained(Codebook)
    with pytest.raises(MisconfigurationException, match=r"the buffer 'mean' changes in training.*pass module_init"):
        trainer(Retrain()).fit(module, loaders())
    trainer(Retrain(Codebook)).fit(module, loaders())
    assert module.mean.abs().max() < 1  # type: ignore[union-attr]


def test_a_reset_that_fails_leaves_the_weights_as_they_were() -> None:
    class Failing(nn.Linear):
        trained = False

        def reset_parameters(self) -> None:
            if self.trained:
                raise RuntimeError("no reset")
            super().reset_parameters()

    module = nn.Sequential(nn.Linear(2, 3), Failing(3, 2), nn.Linear(2, 2))
    before = [parameter.clone() for parameter in module.parameters()]
    module[1].trained = True
    with pytest.raises(RuntimeError, match="no reset"):
        untrained_values(module, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
