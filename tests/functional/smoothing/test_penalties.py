"""Penalties on gradient and curvature: values and gradients that can be checked by hand, and a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_unlearn.functional.smoothing import (
    curvature_penalty,
    curvature_penalty_gradient,
    difference_step,
    gradient_penalty,
    hessian_vector_product,
)
from lightning_unlearn.functional.smoothing.gradient_penalty import unit_vector

Loss = Callable[[Sequence[Tensor]], Tensor]


def quadratic(*diagonal: float) -> Loss:
    scale = torch.tensor(diagonal, dtype=torch.float64)
    return lambda weights: 0.5 * (scale * weights[0] ** 2).sum()


def point(*values: float) -> list[Tensor]:
    return [torch.tensor(values, dtype=torch.float64, requires_grad=True)]


def gradient(loss: Loss, weights: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss(weights), weights, create_graph=True))


def product(loss: Loss, weights: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    first = gradient(loss, weights)
    return lambda v: list(torch.autograd.grad(first, weights, grad_outputs=list(v), retain_graph=True))


def network() -> tuple[Loss, list[Tensor]]:
    """The loss of a network of two layers with tanh, and its weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    names = [name for name, _ in net.named_parameters()]

    def loss(weights: Sequence[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(net, dict(zip(names, weights, strict=True)), (x,)), y)

    return loss, [p.detach().clone().requires_grad_() for p in net.parameters()]


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Relative to the second."""
    flat = [torch.cat([x.detach().flatten() for x in vector]) for vector in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


def test_penalized_gradient_of_a_sphere() -> None:
    """Had the norm been added up as a number, the gradient would be (3, 4), as that of the released code."""
    weights, loss = point(3.0, 4.0), quadratic(1.0, 1.0)
    total = loss(weights) + 2 * gradient_penalty(gradient(loss, weights))
    assert total.item() == pytest.approx(12.5 + 2 * 5)
    (found,) = torch.autograd.grad(total, weights)
    torch.testing.assert_close(found, torch.tensor([4.2, 5.6], dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_norm_without_a_graph_is_refused() -> None:
    weights = point(3.0, 4.0)
    number = torch.autograd.grad(quadratic(1.0, 1.0)(weights), weights)
    with pytest.raises(ValueError, match="carry no graph"):
        gradient_penalty(number)


def test_penalty_gradient_is_the_hessian_along_the_gradient() -> None:
    weights, loss = point(1.0, 1.0), quadratic(1.0, 4.0)
    penalty = gradient_penalty(gradient(loss, weights))
    assert penalty.item() == pytest.approx(17**0.5, abs=1e-12)
    (found,) = torch.autograd.grad(penalty, weights)
    wanted = torch.tensor([1.0, 16.0], dtype=torch.float64) / 17**0.5
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)


def test_penalty_at_a_minimum_is_0_and_not_nan() -> None:
    weights, loss = point(0.0, 0.0), quadratic(1.0, 4.0)
    penalty = gradient_penalty(gradient(loss, weights))
    (found,) = torch.autograd.grad(penalty, weights)
    assert penalty.item() == 0
    assert torch.equal(found, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(("at", "steepness"), [((0.0, 1.0), 4.0), ((1.0, 0.0), 1.0)])
def test_curvature_of_a_quadratic_along_its_axes(at: tuple[float, float], steepness: float) -> None:
    loss, mu = quadratic(1.0, 4.0), 0.01
    weights = point(*at)
    first = gradient(loss, weights)
    moved = [(w + mu * v).detach().requires_grad_() for w, v in zip(weights, unit_vector(first), strict=True)]
    value, u = curvature_penalty(gradient(loss, moved), first)
    assert value.item() == pytest.approx(steepness * mu, abs=1e-12)
    # With v held constant there is none, as the Hessian is; on an axis v has no reason to turn either.
    for detach in (True, False):
        (found,) = curvature_penalty_gradient(
            first, u, product(loss, weights), product(loss, moved), mu=mu, detach=detach
        )
        torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("detach", [True, False])
def test_curvature_gradient_is_that_of_automatic_differentiation(detach: bool) -> None:
    """The reference differentiates the equation itself, through the direction v too where that turns."""
    loss, weights = network()
    mu = 0.05
    first = gradient(loss, weights)
    norm = torch.cat([g.flatten() for g in first]).norm()
    v = [g / norm for g in first]
    moved = [w + mu * (x.detach() if detach else x) for w, x in zip(weights, v, strict=True)]
    change = [a - b for a, b in zip(gradient(loss, moved), first, strict=True)]
    reference = torch.cat([d.flatten() for d in change]).norm()
    wanted = torch.autograd.grad(reference, weights)

    there = [w.detach().requires_grad_() for w in moved]
    value, u = curvature_penalty(gradient(loss, there), first)
    found = curvature_penalty_gradient(first, u, product(loss, weights), product(loss, there), mu=mu, detach=detach)
    assert value.item() == pytest.approx(reference.item(), rel=1e-12)
    assert distance(found, wanted) < 1e-10


def test_the_direction_turns_in_the_whole_gradient() -> None:
    """Of a quadratic, mu |Hv| has a gradient through v alone: at (1, 1), H = diag(1, 4)."""
    loss, weights, mu = quadratic(1.0, 4.0), point(1.0, 1.0), 0.1
    first = gradient(loss, weights)
    hessian = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    v = hessian @ weights[0] / (hessian @ weights[0]).norm()
    (wanted,) = torch.autograd.grad(mu * (hessian @ v).norm(), weights)
    moved = [(weights[0] + mu * v).detach().requires_grad_()]
    _, u = curvature_penalty(gradient(loss, moved), first)
    products = product(loss, weights), product(loss, moved)
    (found,) = curvature_penalty_gradient(first, u, *products, mu=mu, detach=False)
    assert wanted.norm() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)
    assert curvature_penalty_gradient(first, u, *products, mu=mu)[0].norm() < 1e-12


def test_differences_agree_with_double_backward_on_a_network() -> None:
    loss, weights = network()
    first = gradient(loss, weights)
    wanted = torch.autograd.grad(gradient_penalty(first), weights)

    def displaced(by: Sequence[Tensor]) -> list[Tensor]:
        return gradient(loss, [(w + d).detach().requires_grad_() for w, d in zip(weights, by, strict=True)])

    length = torch.cat([w.detach().flatten() for w in weights]).norm().item()
    step = difference_step(length, 1.0, torch.float64)
    assert distance(hessian_vector_product(displaced, unit_vector(first), step=step), wanted) < 1e-5


def test_a_product_with_nothing_is_0() -> None:
    def never(_: Sequence[Tensor]) -> list[Tensor]:
        raise AssertionError

    assert difference_step(3.0, 0.0) == 0
    (found,) = hessian_vector_product(never, [torch.zeros(2)], step=0.0)
    assert torch.equal(found, torch.zeros(2))
