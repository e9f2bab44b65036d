"""Worst-case forget sets, and the projection onto the capped simplex."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.classification.worst_case import capped_simplex_projection, worst_case_indices


def brute(w: Tensor, total: float) -> Tensor:
    """The sum is linear in mu between the points where an entry meets a bound: solve on the one piece that fits."""
    edges = torch.cat([w, w - 1]).sort().values
    sums = torch.stack([(w - mu).clamp(0, 1).sum() for mu in edges])
    at = int((sums > total).nonzero().max()) if (sums > total).any() else -1
    if at < 0:
        return (w - edges[0]).clamp(0, 1)
    share = (sums[at] - total) / (sums[at] - sums[at + 1])
    return (w - (edges[at] + share * (edges[at + 1] - edges[at]))).clamp(0, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total", [1, 7, 12.5, 39])
def test_the_projection_is_exact(seed: int, total: float) -> None:
    w = 3 * torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = capped_simplex_projection(w, total)
    assert found.sum().item() == pytest.approx(total, abs=1e-12)
    torch.testing.assert_close(found, brute(w, total), atol=1e-12, rtol=0)
    torch.testing.assert_close(capped_simplex_projection(found, total), found, atol=1e-12, rtol=0)


def test_no_feasible_point_is_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(8, generator=generator, dtype=torch.float64)
    found = capped_simplex_projection(w, 3)
    others = torch.rand(2000, 8, generator=generator, dtype=torch.float64).topk(3).indices
    corners = torch.zeros(2000, 8, dtype=torch.float64).scatter(1, others, 1.0)
    mixed = corners.view(200, 10, 8).mean(1)
    assert ((torch.cat([corners, mixed]) - w).norm(dim=1) >= (found - w).norm() - 1e-12).all()


@pytest.mark.parametrize(("total", "value"), [(0, 0.0), (4, 1.0)])
def test_all_or_nothing(total: int, value: float) -> None:
    assert capped_simplex_projection(torch.tensor([5.0, -2.0, 0.3, 0.3]), total).tolist() == [value] * 4


def test_a_shift_changes_nothing_and_feasible_weights_stay() -> None:
    w = torch.tensor([0.9, 0.1, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(capped_simplex_projection(w, 2), w)
    torch.testing.assert_close(capped_simplex_projection(w + 7, 2), w)


def test_weights_that_unlearn_gets_are_a_relaxed_set_and_go_where_the_loss_stays_low() -> None:
    loss = torch.tensor([3.0, 0.1, 2.0, 0.2, 1.0])
    seen: list[Tensor] = []

    def unlearn(weights: Tensor) -> Tensor:
        seen.append(weights)
        return loss

    assert worst_case_indices(unlearn, 5, 2, steps=4, lr=0.1).tolist() == [1, 3]
    torch.testing.assert_close(seen[0], torch.full((5,), 0.4))
    # One step: w - 0.1 * loss, moved by the mean of 0.1 * loss, as no bound is met.
    torch.testing.assert_close(seen[1], 0.4 - 0.1 * (loss - loss.mean()))
    for weights in seen:
        assert weights.sum().item() == pytest.approx(2, abs=1e-6)
        assert ((weights >= 0) & (weights <= 1)).all()
    assert worst_case_indices(unlearn, 5, 2, easiest=True).tolist() == [0, 2]


def test_gamma_pulls_towards_equal_weights() -> None:
    seen: list[Tensor] = []

    def unlearn(weights: Tensor) -> Tensor:
        seen.append(weights)
        return torch.tensor([1.0, 0.0])

    for gamma in (0.0, 5.0):
        worst_case_indices(unlearn, 2, 1, steps=40, lr=0.05, gamma=gamma)
    torch.testing.assert_close(seen[39], torch.tensor([0.0, 1.0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(seen[79], torch.tensor([0.45, 0.55]))  # l_i + 2 gamma w_i is the same for both


def test_the_hardest_rows_of_a_model_are_those_that_others_speak_for() -> None:
    """Two clusters that say their label many times, and a few rows that nothing else explains."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(20, 2, generator=generator) + 4, torch.randn(20, 2, generator=generator) - 4])
    y = torch.cat([torch.ones(20), torch.zeros(20)])
    y[[0, 25]] = 1 - y[[0, 25]]  # learned by heart, if at all

    def unlearn(weights: Tensor) -> Tensor:
        theta = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([theta], lr=0.1)
        for _ in range(20):
            losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ theta, y, reduction="none")
            optimizer.zero_grad()
            ((1 - weights) * losses).mean().backward()
            optimizer.step()
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ theta, y, reduction="none")

    easiest = worst_case_indices(unlearn, 40, 2, lr=0.1, easiest=True)
    hardest = worst_case_indices(unlearn, 40, 8, lr=0.1)
    assert easiest.tolist() == [0, 25]
    assert not {0, 25} & set(hardest.tolist())
    assert hardest.tolist() == sorted(set(hardest.tolist()))
    assert len(hardest) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: capped_simplex_projection(torch.zeros(3), 4), "total must be from 0 to the 3 weights, but got 4"),
        (lambda: capped_simplex_projection(torch.tensor([float("nan")]), 1), "weights must be finite"),
        (lambda: worst_case_indices(lambda w: w, 3, 3), "count must be from 1 to one less than the 3 rows"),
        (lambda: worst_case_indices(lambda w: w, 3, 1, steps=0), "steps=0"),
        (lambda: worst_case_indices(lambda w: w, 3, 1, lr=0.0), "lr=0.0"),
        (lambda: worst_case_indices(lambda w: w[:2], 3, 1), r"got shape \(2,\)"),
        (lambda: worst_case_indices(lambda w: w / 0, 3, 1), "not finite"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
