"""GaussianSmoother averages a function over noise on its input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import GaussianSmoother


def test_without_noise_the_function_is_called_once_on_the_input_itself() -> None:
    calls: list[Tensor] = []
    x = torch.randn(3, 4)
    result = GaussianSmoother(0.0, n_samples=5)(lambda rows: calls.append(rows) or 2 * rows, x)
    assert torch.equal(result, 2 * x)
    assert len(calls) == 1
    assert calls[0] is x


def test_all_samples_are_in_one_batch_sample_by_sample() -> None:
    calls: list[Tensor] = []
    smoother, x = GaussianSmoother(0.3, n_samples=4, seed=1), torch.randn(3, 2)
    rows = torch.tensor([5, 0, 9])
    smoother(lambda batch: calls.append(batch) or batch, x, key=(2,), rows=rows)
    (batch,) = calls
    assert torch.equal(batch.view(4, 3, 2), x + smoother.noise(x, (2,), rows))


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_antithetic_samples_give_the_exact_mean_of_a_linear_function(kind: Any) -> None:
    x = torch.randn(2, 6, dtype=kind)
    smoothed = GaussianSmoother(2.0, n_samples=6, antithetic=True)(lambda rows: 3 * rows, x)
    torch.testing.assert_close(smoothed, 3 * x)


def test_the_mean_of_a_square_is_larger_by_the_variance() -> None:
    """E (x + s z)^2 = x^2 + s^2."""
    x = torch.full((1, 100_000), 2.0)
    smoothed = GaussianSmoother(0.5, n_samples=2)(lambda rows: rows.square(), x)
    assert smoothed.mean().item() == pytest.approx(4.25, abs=0.02)


def test_noise_is_shared_by_all_keys_only_where_that_is_asked() -> None:
    x = torch.zeros(2, 3)
    for shared in (False, True):
        smoother = GaussianSmoother(1.0, n_samples=2, shared=shared)
        assert torch.equal(smoother.noise(x, (0,)), smoother.noise(x, (1,))) is shared


def test_no_random_state_moves() -> None:
    state = torch.get_rng_state()
    GaussianSmoother(1.0, n_samples=2)(lambda rows: rows, torch.zeros(2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_flow_through_the_mean() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    GaussianSmoother(0.5, n_samples=3)(lambda rows: 2 * rows, x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1.0}, "sigma must be at least 0, but got -1.0"),
        ({"sigma": 1.0, "n_samples": 0}, "n_samples must be at least 1"),
        ({"sigma": 1.0, "n_samples": 3, "antithetic": True}, "must be even, but is 3"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianSmoother(**options)
