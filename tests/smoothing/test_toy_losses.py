"""Smoothed gradients of losses whose gradients are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import SAM, ForgetTerm, RandomizedSmoothing, Smoothed, SmoothingStrategy
from tests.helpers import bits, trainer


class Point(L.LightningModule):
    """A point in space."""

    def __init__(self, start: list[float], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=dtype))


def smooth(strategy: SmoothingStrategy, point: Point, loss: Callable[[Tensor], Tensor]) -> tuple[Smoothed, Tensor]:
    """The smoothed loss and its gradient; checks that the point stays where it was."""
    before = point.theta.detach().clone()
    found = strategy.smooth(ForgetTerm(trainer(), point, lambda: {"loss": loss(point.theta)}))
    assert torch.equal(bits(point.theta), bits(before))
    assert point.theta.grad is None
    (gradient,) = found.gradients
    assert gradient is not None
    return found, gradient


def bowl(theta: Tensor) -> Tensor:
    return 0.5 * theta.square().sum()


def ellipse(theta: Tensor) -> Tensor:
    return 0.5 * (theta[0] ** 2 + 4 * theta[1] ** 2)


def near(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "start", "rho", "expected"),
    [
        (bowl, [3.0, 4.0], 0.5, [3.3, 4.4]),
        (bowl, [3.0, 4.0], 0.0, [3.0, 4.0]),
        (ellipse, [1.0, 1.0], 17**0.5, [2.0, 20.0]),
    ],
)
def test_sam_has_the_gradient_of_the_perturbed_point(loss: Any, start: Any, rho: float, expected: Any) -> None:
    found, gradient = smooth(SAM(rho=rho), Point(start), loss)
    torch.testing.assert_close(gradient, near(expected), atol=1e-8, rtol=0)
    moved = near(start) + rho * torch.autograd.functional.jacobian(loss, near(start)) / found.logged["grad_norm"]
    assert found.value.item() == pytest.approx(loss(moved).item())
    assert found.logged["sharpness"].item() == pytest.approx(loss(moved).item() - loss(near(start)).item())


def test_adaptive_sam_moves_each_weight_in_its_own_unit() -> None:
    """T g = (9, 16) for g = theta = (3, 4): epsilon = rho (27, 64) / sqrt(337)."""
    _, gradient = smooth(SAM(rho=0.5, adaptive=True), Point([3.0, 4.0]), bowl)
    expected = near([3.0, 4.0]) + 0.5 * near([27.0, 64.0]) / 337**0.5
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("strategy", [SAM(rho=0.3), RandomizedSmoothing(sigma=0.3, n_samples=2)])
def test_weights_are_put_back_in_every_precision(strategy: Any, dtype: torch.dtype) -> None:
    smooth(strategy, Point([0.1, -0.7, 0.0, -0.0] * 25, dtype), bowl)


@pytest.mark.parametrize("n_samples", [1, 2, 3])
def test_no_noise_leaves_the_gradient_as_it_is(n_samples: int) -> None:
    _, gradient = smooth(RandomizedSmoothing(sigma=0.0, n_samples=n_samples), Point([0.1, 0.7]), ellipse)
    assert torch.equal(gradient, near([0.1, 4 * 0.7]))


@pytest.mark.parametrize("sigma", [0.1, 10.0])
def test_antithetic_noise_has_the_exact_gradient_of_a_quadratic(sigma: float) -> None:
    strategy = RandomizedSmoothing(sigma=sigma, n_samples=4, antithetic=True)
    found, gradient = smooth(strategy, Point([1.0, -2.0]), ellipse)
    torch.testing.assert_close(gradient, near([1.0, -8.0]))
    assert found.value > ellipse(near([1.0, -2.0]))


def test_noise_on_a_fourth_power_adds_its_variance_to_the_gradient() -> None:
    """d/dt E (t + s z)^4 = 4 t^3 + 12 t s^2 = 7 at t = 1, s = 0.5, here as the mean of 200,000 draws."""
    point = Point([1.0] * 20_000)
    _, gradient = smooth(RandomizedSmoothing(0.5, n_samples=10), point, lambda theta: theta.pow(4).sum())
    assert gradient.mean().item() == pytest.approx(7.0, rel=0.03)


def test_relative_noise_is_in_units_of_the_weight() -> None:
    seen: list[Tensor] = []

    def loss(theta: Tensor) -> Tensor:
        seen.append(theta.detach().clone())
        return bowl(theta)

    smooth(RandomizedSmoothing(0.1, n_samples=1, relative=True), Point([100.0, 1.0, 0.0] * 100), loss)
    apart = (seen[0] - near([100.0, 1.0, 0.0] * 100)).view(100, 3).std(0)
    assert apart[0].item() == pytest.approx(10.0, rel=0.3)
    assert apart[1].item() == pytest.approx(0.1, rel=0.3)
    assert apart[2].item() == 0


def test_only_chosen_weights_are_perturbed() -> None:
    point = Point([3.0, 4.0])
    point.other = nn.Parameter(near([1.0]))

    def loss(_: Tensor) -> Tensor:
        return bowl(point.theta) + 5 * bowl(point.other)

    found = SAM(rho=0.5, parameters="theta").smooth(ForgetTerm(trainer(), point, lambda: {"loss": loss(point.theta)}))
    theta, other = found.gradients
    torch.testing.assert_close(theta, near([3.3, 4.4]))
    torch.testing.assert_close(other, near([5.0]))
    with pytest.raises(Exception, match="parameters='nothing' is found in the name of no weight"):
        SAM(parameters="nothing").smooth(ForgetTerm(trainer(), point, lambda: {"loss": loss(point.theta)}))


def test_a_weight_without_gradient_keeps_none() -> None:
    point = Point([3.0, 4.0])
    point.idle = nn.Parameter(near([1.0]))
    for strategy in (SAM(rho=0.5), RandomizedSmoothing(0.1)):
        found = strategy.smooth(ForgetTerm(trainer(), point, lambda: {"loss": bowl(point.theta)}))
        assert found.gradients[1] is None


def test_a_perturbation_below_the_resolution_of_bf16_is_told() -> None:
    point = Point([1.0] * 100, torch.bfloat16)
    with pytest.warns(UserWarning, match="SAM moves the weights by 0.0% of the length it is set to"):
        smooth(SAM(rho=0.01), point, lambda theta: theta.sum())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(rho=-1.0), "rho must be at least 0"),
        (lambda: SAM(parameters="("), "not a regular expression"),
        (lambda: RandomizedSmoothing(sigma=-1.0), "sigma must be at least 0"),
        (lambda: RandomizedSmoothing(n_samples=0), "n_samples must be at least 1"),
        (lambda: RandomizedSmoothing(n_samples=3, antithetic=True), "must be even, but is 3"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
