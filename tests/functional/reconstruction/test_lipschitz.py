"""Lipschitz constants, estimated and bounded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.reconstruction.data_consistency import data_consistency
from lightning_unlearn.functional.reconstruction.lipschitz import (
    estimate_lipschitz,
    smoothed_lipschitz_bound,
    unrolled_stability_bound,
)
from lightning_unlearn.functional.reconstruction.soft_threshold import soft_threshold


@pytest.mark.parametrize(("bound", "sigma"), [(1.0, 0.1), (3.0, 0.01)])
def test_a_smoothed_step_meets_the_bound_with_equality(bound: float, sigma: float) -> None:
    def smoothed(x: Tensor) -> Tensor:  # E of B sign(x + eta) in closed form
        return bound * torch.erf(x / (sigma * 2**0.5))

    slope = estimate_lipschitz(smoothed, torch.zeros(1, 1, dtype=torch.float64)).item()
    assert slope == pytest.approx(bound * math.sqrt(2 / math.pi) / sigma)
    assert slope == pytest.approx(smoothed_lipschitz_bound(bound, sigma))


def test_the_closed_form_of_the_step_is_its_mean_over_noise() -> None:
    noise = 0.1 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    mean = (0.05 + noise).sign().mean().item()
    assert mean == pytest.approx(math.erf(0.05 / (0.1 * 2**0.5)), abs=3 / 400_000**0.5)


def test_a_matrix_has_its_largest_singular_value() -> None:
    matrix = torch.randn(2, 6, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))

    def product(x: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", matrix, x)

    value = estimate_lipschitz(product, torch.zeros(2, 6, dtype=torch.complex128), iterations=100)
    torch.testing.assert_close(value, torch.linalg.matrix_norm(matrix, 2), rtol=1e-4, atol=0)


def test_it_rises_and_weights_get_no_gradient() -> None:
    layer = torch.nn.Conv2d(2, 2, 3, padding=1)
    at = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    values = [estimate_lipschitz(lambda x: x + layer(x).relu(), at, iterations=n).item() for n in (1, 3, 10, 30)]
    assert values == sorted(values)
    assert values[0] < values[-1]
    assert layer.weight.grad is None
    assert not estimate_lipschitz(lambda x: x + layer(x).relu(), at, iterations=2).requires_grad


def test_data_consistency_passes_on_at_most_what_its_formula_says() -> None:
    mask = (torch.arange(8) % 3 == 0).double()

    def normal(x: Tensor) -> Tensor:
        return torch.fft.ifft2(mask * torch.fft.fft2(x))

    d = torch.zeros(1, 8, 8, dtype=torch.complex128)
    of_z = estimate_lipschitz(lambda z: data_consistency(normal, z, d, 0.5, 1e-12), d, iterations=15)
    assert of_z.item() == pytest.approx(1 / 0.5, abs=1e-6)  # where nothing is measured


@pytest.mark.parametrize(("lipschitz", "weight"), [(0.9, 1.0), (1.5, 0.5), (1.0, 2.0)])
def test_the_bound_of_the_unrolled_network_is_the_recursion(lipschitz: float, weight: float) -> None:
    moved = 1.0
    for step in range(6):
        assert unrolled_stability_bound(lipschitz, step, weight) == pytest.approx(moved)
        moved = 1 / weight + lipschitz * moved


def test_soft_thresholds() -> None:
    values = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert soft_threshold(values, 0.75).tolist() == [-1.25, 0, 0, 0, 1.25]
    assert soft_threshold(torch.tensor([3 + 4j]), 1.0).item() == pytest.approx(4 * (0.6 + 0.8j))
    threshold = torch.tensor(0.75, requires_grad=True)
    soft_threshold(values, threshold).square().sum().backward()
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(-5.0)


def test_what_bounds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma must be greater than 0"):
        smoothed_lipschitz_bound(1.0, 0.0)
    with pytest.raises(ValueError, match="weight must be greater than 0"):
        unrolled_stability_bound(1.0, 3, 0.0)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        estimate_lipschitz(torch.sin, torch.zeros(1, 1), iterations=0)
