"""Sophia's arithmetic, the Gauss-Newton-Bartlett estimate, and the solves of influence unlearning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.curvature.conjugate_gradient import conjugate_gradient
from lightning_unlearn.functional.curvature.gauss_newton import sample_labels
from lightning_unlearn.functional.curvature.sophia import sophia, sophia_hessian
from lightning_unlearn.functional.curvature.woodfisher import woodfisher


def update(g: float, h: float, m: float = 0.0, p: float = 0.0, foreach: bool = False, **options: float) -> float:
    weight, momentum = torch.tensor([p]), torch.tensor([m])
    defaults = {"lr": 1.0, "beta1": 0.9, "rho": 0.04, "bs": 5120.0, "weight_decay": 0.0}
    sophia(
        [weight],
        [torch.tensor([g])],
        [momentum],
        [torch.tensor([h])],
        foreach=foreach,
        **(defaults | options),  # type: ignore[arg-type]
    )
    return weight.item() - p


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("g", "beta1", "expected"), [(1e-3, 0.9, -1), (1e-3, 0.81, -1), (0.1, 0.9, -0.09765625), (0.1, 0.81, -0.185546875)]
)
def test_the_first_step_of_a_steady_gradient(g: float, beta1: float, expected: float, foreach: bool) -> None:
    h = 0.05 * g * g
    ratio = (1 - beta1) * g / (0.04 * 5120 * h)
    assert ratio == pytest.approx({1e-3: 97.65625, 0.1: 0.9765625}[g] * (1 - beta1))
    assert update(g, h, beta1=beta1, foreach=foreach) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("foreach", [False, True])
def test_no_coordinate_moves_further_than_the_learning_rate(foreach: bool) -> None:
    torch.manual_seed(0)
    w, g, m, h = (torch.randn(100_000) for _ in range(4))
    before = w.clone()
    clipped, moving = sophia([w], [g], [m], [h.square()], lr=1e-2, rho=1.0, weight_decay=0.0, foreach=foreach)
    step = w - before
    assert step.abs().max() <= 1e-2 + 1e-6
    assert moving == 100_000
    expected = (m.abs() >= h.square() + 1e-15).sum()
    assert clipped == expected
    assert 0 < clipped < moving


@pytest.mark.parametrize("foreach", [False, True])
def test_without_curvature_it_is_the_sign_of_the_momentum(foreach: bool) -> None:
    assert update(3e-9, 0.0, foreach=foreach) == -1.0
    assert update(-3.0, 0.0, foreach=foreach) == 1.0
    assert update(0.0, 0.0, foreach=foreach) == 0.0
    assert update(3.0, -1.0, foreach=foreach) == -1.0  # Hutchinson's estimate of a concave direction


def test_rho_runs_from_the_sign_of_the_momentum_to_a_standstill() -> None:
    assert update(0.1, 1.0, rho=1e-12) == -1.0
    assert abs(update(0.1, 1.0, rho=1e12)) < 1e-12


@pytest.mark.parametrize("foreach", [False, True])
def test_decay_is_decoupled(foreach: bool) -> None:
    assert update(0.0, 1.0, p=2.0, lr=0.1, weight_decay=0.5, foreach=foreach) == pytest.approx(-0.1)


@pytest.mark.parametrize("layout", [(1,), (3, 5), (70_000,), (300, 400)])
def test_one_loop_over_tensors_equals_the_other(layout: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    results = []
    for foreach in (False, True):
        torch.manual_seed(1)
        w, g, m = (torch.randn(layout) for _ in range(3))
        if len(layout) == 2:
            g = torch.randn(layout[::-1]).T  # not contiguous
        h = torch.rand(layout)
        count = sophia([w], [g], [m], [h], lr=1e-2, rho=0.3, bs=4.0, foreach=foreach)
        results.append((w, m, count))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_bf16_weight_keeps_fp32_states() -> None:
    w, g = torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    m, h = torch.zeros(4), torch.zeros(4)
    sophia([w], [g], [m], [h], lr=0.5, beta1=0.9)
    assert w.tolist() == [-0.5] * 4
    assert m.tolist() == pytest.approx([0.1] * 4)


def test_the_curvature_after_one_estimate() -> None:
    h = torch.zeros(1)
    sophia_hessian([h], [torch.tensor([9.0])], beta2=0.95)
    assert h.item() == pytest.approx(0.05 * 9)


P = torch.tensor([0.5, 0.3, 0.2])
GAUSS_NEWTON = torch.tensor([0.25, 0.21, 0.16])  # diag(diag(p) - pp'): with the feature 1, of the weights too


def estimate(labels: Tensor) -> Tensor:
    """B times the square of the mean gradient, over draws of B = 4 labels."""
    gradient = P - torch.nn.functional.one_hot(labels.view(-1, 4), 3).float()
    return (4 * gradient.mean(1).square()).mean(0)


def test_sampled_labels_make_the_estimate_unbiased() -> None:
    draws = 20_000
    labels = sample_labels(P.log().expand(4 * draws, 3), torch.arange(4 * draws), seed=1)
    torch.testing.assert_close(estimate(labels), GAUSS_NEWTON, rtol=0.02, atol=0)
    assert ((estimate(torch.zeros(4 * draws, dtype=torch.int64)) - GAUSS_NEWTON).abs() > 0.2).any()
    drawn_elsewhere = torch.multinomial(P, 4 * draws, True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate(drawn_elsewhere), GAUSS_NEWTON, rtol=0.02, atol=0)


def test_a_label_depends_on_its_place_and_the_seed_alone() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    together = sample_labels(logits, torch.arange(64), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    apart = torch.cat([sample_labels(logits[i : i + 8], torch.arange(i, i + 8), seed=3) for i in range(0, 64, 8)])
    assert torch.equal(together, apart)
    assert (sample_labels(logits, torch.arange(64), seed=4) != together).float().mean() > 0.8
    assert (sample_labels(logits, torch.arange(64) << 32, seed=3) != together).float().mean() > 0.8
    assert sample_labels(logits.bfloat16(), torch.arange(64), seed=3).shape == (64,)


@pytest.mark.parametrize("samples", [3, 40])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_woodfisher_inverts_the_damped_fisher_matrix(samples: int, damping: float) -> None:
    torch.manual_seed(0)
    gradients, v = torch.randn(samples, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    matrix = damping * torch.eye(12, dtype=torch.float64) + gradients.T @ gradients / samples
    solved = torch.cat(woodfisher(gradients.split([5, 4, 3], 1), v.split([5, 4, 3]), damping=damping))
    assert (matrix @ solved - v).norm() / v.norm() < 1e-6
    torch.testing.assert_close(solved, torch.linalg.solve(matrix, v))


def test_woodfisher_equals_its_rank_one_updates() -> None:
    torch.manual_seed(0)
    gradients, v = torch.randn(6, 9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    inverse = torch.eye(9, dtype=torch.float64) / 0.1
    for g in gradients:
        inverse -= torch.outer(inverse @ g, inverse @ g) / (6 + g @ inverse @ g)
    torch.testing.assert_close(woodfisher([gradients], [v], damping=0.1)[0], inverse @ v)


def test_woodfisher_without_damping_is_refused() -> None:
    with pytest.raises(ValueError, match="damping must be positive"):
        woodfisher([torch.ones(1, 2)], [torch.ones(2)], damping=0.0)


def test_conjugate_gradients_solve_in_as_many_products_as_there_are_weights() -> None:
    torch.manual_seed(0)
    root = torch.randn(8, 8, dtype=torch.float64)
    matrix, v = root @ root.T, torch.randn(8, dtype=torch.float64)
    products = 0

    def product(x: list[Tensor]) -> list[Tensor]:
        nonlocal products
        products += 1
        return list((matrix @ torch.cat(x)).split([6, 2]))

    solved = conjugate_gradient(product, list(v.split([6, 2])), damping=0.5, tolerance=1e-12)
    torch.testing.assert_close(
        torch.cat(solved), torch.linalg.solve(matrix + 0.5 * torch.eye(8, dtype=torch.float64), v)
    )
    assert products <= 10


def test_conjugate_gradients_refuse_a_concave_direction() -> None:
    with pytest.raises(ArithmeticError, match="Raise damping"):
        conjugate_gradient(lambda x: [-x[0]], [torch.ones(2)], damping=0.5)
