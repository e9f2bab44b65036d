"""Fisher forgetting: the noise has the variance of the formula, from the gradient of each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn import FisherForgetting, training_step_loss
from lightning_unlearn.functional.classification.fisher_forgetting import fisher_forgetting
from tests.user_module import LitNet, loaders, pairs, trainer, weights


def net(cls: type[LitNet] = LitNet) -> LitNet:
    torch.manual_seed(0)
    return cls()


class NormNet(LitNet):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def squares(module: LitNet, loader: DataLoader, batched: bool) -> list[Tensor]:
    """The diagonal of the Fisher matrix, row by row or batch by batch, class by class."""
    parameters = list(module.parameters())
    total, count = [torch.zeros_like(p) for p in parameters], 0
    parts = [x for x, _ in loader] if batched else [x[None] for x, _ in loader.dataset]
    for x in parts:
        for y in range(3):
            log_p = module(x).log_softmax(1)
            gradients = torch.autograd.grad(log_p[:, y].mean(), parameters)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += log_p[:, y].exp().mean().detach() * gradient**2
        count += 1
    return [t / count for t in total]


def expected(module: LitNet, fisher: list[Tensor], alpha: float, forget_class: int | None = None) -> Tensor:
    """What the released code makes of it, tensor by tensor."""
    generator = torch.Generator().manual_seed(0)
    noisy = []
    for parameter, f in zip(module.parameters(), fisher, strict=True):
        mean, output = parameter.detach().clone(), len(parameter) == 3
        variance = alpha * (1 / (f + 1e-8)).clamp(max=1e2 if output else 1e3)
        if parameter.dim() > 1:
            variance = variance.mean(1, keepdim=True).expand_as(f).clone()
        if output and forget_class is not None:
            mean[forget_class], variance[forget_class] = 0, 1e-4
        if output or parameter.dim() == 1:
            variance = variance * 10
        noisy.append((mean + variance.sqrt() * torch.randn(f.shape, generator=generator)).flatten())
    return torch.cat(noisy)


@pytest.mark.parametrize("parity", [None, "released"])
@pytest.mark.parametrize("forget_class", [None, 1])
@pytest.mark.parametrize("cls", [LitNet, NormNet])
def test_it_is_the_formula(parity: Any, forget_class: int | None, cls: Any) -> None:
    module = net(cls)
    buffers = {k: b.clone() for k, b in module.named_buffers()}
    fisher = squares(module.eval(), pairs(16, 2), batched=parity is not None)
    wanted = expected(module, fisher, 1e-4, forget_class)
    run = trainer(FisherForgetting(1e-4, forget_class, parity, rows_at_once=3))
    run.fit(module.train(), loaders())
    assert run.global_step == 0
    torch.testing.assert_close(weights(module), wanted, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(b, buffers[k]) for k, b in module.named_buffers())
    assert all(child.training for child in module.modules())


def test_squares_of_batch_means_are_not_those_of_rows() -> None:
    rows, batches = (squares(net().eval(), pairs(16, 2), batched) for batched in (False, True))
    assert (batches[0] < 0.7 * rows[0]).float().mean() > 0.8
    ones = squares(net().eval(), pairs(16, 2, batch_size=1), batched=True)
    torch.testing.assert_close(ones, rows)


def test_a_pass_over_the_rows_is_one_a_class_for_each_part_and_not_one_a_row() -> None:
    module, calls = net(), []
    module.net.register_forward_hook(lambda *_: calls.append(1))
    FisherForgetting(rows_at_once=8).edit(module, pairs(1, 1), pairs(16, 2, batch_size=16))
    assert len(calls) == 1 + 1 + 2 * 3  # the first finds the output layer


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_a_trainer_changes_nothing(options: dict[str, Any]) -> None:
    module, alone = net(), net()
    trainer(FisherForgetting(), **options).fit(module, loaders())
    FisherForgetting().edit(alone, **loaders())
    assert torch.equal(weights(module), weights(alone))


def test_the_seed_is_the_noise_and_frozen_weights_stay() -> None:
    one, two, three = net(), net(), net()
    three.net[0].requires_grad_(False)
    FisherForgetting(seed=1).edit(one, **loaders())
    FisherForgetting(seed=2).edit(two, **loaders())
    FisherForgetting(seed=1).edit(three, **loaders())
    assert not torch.equal(weights(one), weights(two))
    assert torch.equal(three.net[0].weight, net().net[0].weight)
    assert not torch.equal(three.net[3].weight, net().net[3].weight)


def test_the_bounds_of_the_variance() -> None:
    """alpha 1e-6: sqrt(1e-6 * 1e3) for a matrix, * sqrt(10) for a vector, sqrt(1e-6 * 1e2 * 10) for the output."""
    ones = {shape: torch.ones(shape) for shape in ((4, 2), (4,), (3, 2))}
    for shape, deviation in {(4, 2): 0.0316228, (4,): 0.1, (3, 2): 0.0316228}.items():
        zeros = torch.zeros(shape)
        moved = fisher_forgetting(zeros, zeros, ones[shape], alpha=1e-6, classes=3)
        torch.testing.assert_close(moved, torch.full(shape, deviation))
    row = fisher_forgetting(torch.ones(3, 2), torch.ones(3, 2), ones[3, 2], alpha=1e-6, classes=3, forget_class=1)[1]
    torch.testing.assert_close(row, torch.full((2,), 0.0316228))  # 0 + sqrt(1e-4 * 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be greater than 0"),
        ({"forget_class": -1}, "forget_class must be at least 0"),
        ({"parity": "paper"}, "parity must be None or 'released'"),
        ({"rows_at_once": 0}, "rows_at_once must be at least 1"),
        ({"score": training_step_loss}, "only gives likelihoods"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FisherForgetting(**options)


def test_errors_leave_the_weights() -> None:
    module = net()
    before = weights(module)
    with pytest.raises(ValueError, match="forget_class is 3, but the model has 3 classes"):
        FisherForgetting(forget_class=3).edit(module, **loaders())
    with pytest.raises(ValueError, match="Pass retain"):
        FisherForgetting().edit(module, pairs(4, 1))
    broken = loaders()
    broken["retain"].dataset.tensors[0].fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="no weight was changed"):
        FisherForgetting().edit(module, **broken)
    with pytest.raises(MisconfigurationException, match=r"reads the \['retain'\] rows"):
        trainer(FisherForgetting()).fit(module, {"forget": pairs(4, 1)})
    assert torch.equal(weights(module), before)
