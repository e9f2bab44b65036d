"""Tokens relaxed to the probability simplex."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.diffusion.simplex import project_simplex, sample_simplex


def bisection(x: Tensor, tolerance: float = 1e-5) -> Tensor:
    """The released code's way: clip(x - mu, 0, 1) sums to 1."""
    low, high = x.min(-1, keepdim=True).values - 1, x.max(-1, keepdim=True).values
    while (high - low).max() > tolerance:
        middle = (low + high) / 2
        over = (x - middle).clamp(0, 1).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (x - (low + high) / 2).clamp(0, 1)


@pytest.mark.parametrize(
    ("x", "u"),
    [
        ([0.5, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]),
        ([2.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.6, 0.5, -0.2], [0.55, 0.45, 0.0]),
        ([1.0, 1.0, 0.0], [0.5, 0.5, 0.0]),
        ([-7.0], [1.0]),
        ([1e6 + 1, 1e6, 0.0], [1.0, 0.0, 0.0]),
    ],
)
def test_projections_by_hand(x: list[float], u: list[float]) -> None:
    torch.testing.assert_close(project_simplex(torch.tensor(x)), torch.tensor(u), atol=1e-6, rtol=0)


def test_it_is_the_nearest_point() -> None:
    """By the condition of optimality: (x - u) is largest, and equal, where u is positive."""
    x = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = project_simplex(x)
    assert (u >= 0).all()
    torch.testing.assert_close(u.sum(-1), torch.ones(5, 3, dtype=torch.float64))
    excess = x - u
    top = excess.amax(-1, keepdim=True)
    torch.testing.assert_close(excess[u > 0], top.expand_as(u)[u > 0])
    torch.testing.assert_close(project_simplex(u), u)


def test_it_agrees_with_bisection_on_a_whole_vocabulary() -> None:
    x = torch.rand(2, 49408, generator=torch.Generator().manual_seed(1)) * 0.01
    x[0, 7] += 0.3
    assert (project_simplex(x) - bisection(x)).abs().max() < 1e-4
    assert (project_simplex(x).sum(-1) - 1).abs().max() < 1e-5


def test_rows_are_independent_and_empty_ones_are_refused() -> None:
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(project_simplex(x), torch.stack([project_simplex(row) for row in x]))
    with pytest.raises(ValueError, match=r"at least one entry .* got \(3, 0\)"):
        project_simplex(torch.empty(3, 0))


def test_draws_have_the_weights_as_frequencies_and_never_weight_zero() -> None:
    weights = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn = sample_simplex(weights.expand(1000, 6), uniform)
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 200, 0, 500, 300, 0]
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert sample_simplex(weights.expand(2, 6), ends).tolist() == [1, 4]


def test_a_draw_is_not_the_maximum_but_of_a_vertex_it_is() -> None:
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(3))
    assert set(sample_simplex(torch.tensor([0.5, 0.5]).expand(50, 2), uniform).tolist()) == {0, 1}
    assert set(sample_simplex(torch.tensor([0.0, 1.0, 0.0]).expand(50, 3), uniform).tolist()) == {1}
