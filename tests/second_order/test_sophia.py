"""The Sophia optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_unlearn import Sophia


def optimizer(values: list[float], **options: Any) -> tuple[nn.Parameter, Sophia]:
    weight = nn.Parameter(torch.tensor(values))
    return weight, Sophia([weight], **({"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.0} | options))


@pytest.mark.parametrize(("parity", "momentum", "hessian"), [("paper", 0.1, 0.0), ("released", 0.19, 0.05)])
def test_the_state_after_a_step(parity: Any, momentum: float, hessian: float) -> None:
    weight, sophia = optimizer([0.0], parity=parity)
    weight.grad = torch.tensor([3.0])
    sophia.step()
    assert sophia.state[weight]["momentum"].item() == pytest.approx(momentum * 3)
    assert sophia.state[weight]["hessian"].item() == pytest.approx(hessian * 9)


@pytest.mark.parametrize(("g", "step"), [(1e-3, 1.0), (0.1, 0.185546875)])
def test_the_released_step(g: float, step: float) -> None:
    weight, sophia = optimizer([0.0], parity="released")
    weight.grad = torch.tensor([g])
    sophia.step()
    assert weight.item() == pytest.approx(-step * 1e-2, rel=1e-5)


def test_the_released_code_step_by_step() -> None:
    """Its three methods in their order, written out: curvature, momentum, and an update that repeats the momentum."""
    torch.manual_seed(0)
    weight, sophia = optimizer(torch.randn(50).tolist(), parity="released", weight_decay=0.1)
    p, m, h = weight.detach().clone(), torch.zeros(50), torch.zeros(50)
    for _ in range(20):
        weight.grad = g = torch.randn(50) * 0.05
        sophia.step()
        h = 0.95 * h + 0.05 * g * g
        m = 0.9 * m + 0.1 * g
        p = p * (1 - 1e-2 * 0.1)
        m = 0.9 * m + 0.1 * g
        p = p - 1e-2 * m.sign() * (m.abs() / (0.04 * 5120 * h + 1e-15)).clamp(None, 1)
        torch.testing.assert_close(weight.data, p, atol=1e-7, rtol=1e-5)


def test_bs_auto_is_the_number_that_comes_with_an_estimate() -> None:
    steps = []
    for bs, tokens in (("auto", 100.0), (100.0, 7.0)):
        weight, sophia = optimizer([0.0], bs=bs, rho=1.0)
        sophia.update_hessian([torch.tensor([1.0])], bs=tokens)
        weight.grad = torch.tensor([1.0])
        sophia.step()
        steps.append(weight.item())
    assert steps[0] == steps[1] == pytest.approx(-1e-2 * 0.1 / (100 * 0.05))


def test_every_group_has_its_own_settings_and_what_has_no_gradient_stays() -> None:
    a, b, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    sophia = Sophia([{"params": [a, frozen], "lr": 0.5}, {"params": [b]}], lr=0.25, weight_decay=0.1)
    a.grad = b.grad = torch.ones(2)
    sophia.update_hessian([torch.zeros(2), None, torch.zeros(2)], bs=1)
    sophia.step()
    assert a.tolist() == pytest.approx([1 - 0.05 - 0.5] * 2)
    assert b.tolist() == pytest.approx([1 - 0.025 - 0.25] * 2)
    assert frozen.tolist() == [1, 1]
    assert frozen not in sophia.state
    assert sophia.clipped.tolist() == [4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_optimizer_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    def run(weight: nn.Parameter, sophia: Sophia, steps: range) -> None:
        for i in steps:
            weight.grad = torch.randn(64, generator=torch.Generator().manual_seed(i)).to(dtype)
            if i % 3 == 0:
                sophia.update_hessian([weight.grad.square()], bs=5)
            sophia.step()

    weight = nn.Parameter(torch.zeros(64, dtype=dtype))
    sophia = Sophia([weight], lr=0.1)
    run(weight, sophia, range(5))
    resumed = nn.Parameter(weight.detach().clone())
    again = Sophia([resumed])
    again.load_state_dict(copy.deepcopy(sophia.state_dict()))
    assert again.state[resumed]["hessian"].dtype == torch.float32
    run(weight, sophia, range(5, 11))
    run(resumed, again, range(5, 11))
    assert torch.equal(weight, resumed)


def test_a_step_that_a_gradient_scaler_skips_leaves_everything() -> None:
    weight, sophia = optimizer([1.0], parity="released")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value, moved in ((float("inf"), False), (1.0, True)):
        scaler.scale(weight.sum() * 0)  # makes the scale
        weight.grad = torch.tensor([value])
        scaler.unscale_(sophia)
        scaler.step(sophia)
        scaler.update()
        assert (weight.item() != 1.0) is moved
        assert bool(sophia.state) is moved


def test_a_closure_is_run_with_gradients() -> None:
    weight, sophia = optimizer([1.0])

    def closure() -> Any:
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert sophia.step(closure).item() == 1.0
    assert weight.item() < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"rho": 0.0}, "rho must be greater than 0, but got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"bs": 0}, "bs must be 'auto' or a positive number"),
        ({"parity": "code"}, "parity must be"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sophia([nn.Parameter(torch.zeros(1))], **options)


def test_what_does_not_belong_is_refused() -> None:
    weight, sophia = optimizer([1.0])
    with pytest.raises(ValueError, match="one estimate a parameter: 1, but got 2"):
        sophia.update_hessian([None, None], bs=1)
    with pytest.raises(ValueError, match="state is of another optimizer"):
        sophia.load_state_dict(torch.optim.AdamW([weight]).state_dict())
    weight.grad = torch.zeros(1).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        sophia.step()
