"""Estimators and bounds of leaks: published numbers, scipy's quantiles, and coverage where the truth is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from lightning_unlearn.functional import (
    clopper_pearson_upper,
    deviation_upper_bound,
    dkw_epsilon,
    expected_best_of_k,
    leak_at_k,
    mean_upper_bound,
    tail_upper_bound,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 2, 0.5),
        (8, 2, 4, 0.7857142857),
        (200, 2, 1, 0.01),
        (200, 2, 16, 0.1539698492),
        (200, 2, 64, 0.5386934673),
        (200, 2, 128, 0.8715577889),
        (200, 0, 128, 0.0),
        (200, 73, 128, 1.0),
        (200, 200, 1, 1.0),
    ],
)
def test_leak_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert leak_at_k(torch.tensor([c]), n, k).item() == pytest.approx(expected, abs=1e-10)


def test_leak_at_k_of_very_many_samples_is_finite() -> None:
    # C(2000, 1000) is past the largest float64.
    assert leak_at_k(torch.tensor([1]), 2000, 1000).item() == pytest.approx(0.5, abs=1e-9)


def test_the_expected_best_is_the_mean_over_all_choices_of_k_samples() -> None:
    scores = torch.tensor([0.2, 0.9, 0.4, 0.4, 0.7], dtype=torch.float64)
    for k in range(1, 6):
        best = [max(chosen) for chosen in itertools.combinations(scores.tolist(), k)]
        assert expected_best_of_k(scores, k).item() == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_the_expected_best_of_leaks_is_leak_at_k() -> None:
    hits = (torch.arange(32) < torch.tensor([[0], [1], [5], [32]])).float()
    for k in (1, 7, 32):
        torch.testing.assert_close(expected_best_of_k(hits, k), leak_at_k(hits.sum(1), 32, k), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "alpha", "expected"),
    [
        (0, 100, 0.05, 0.0295130496),
        (0, 128, 0.01, 0.0353383801),
        (0, 1024, 0.01, 0.0044871391),
        (3, 100, 0.05, 0.0757107938),
        (1, 128, 0.01, 0.0507345392),
        (0, 400, 0.05, 0.0074613553),
        (5, 400, 0.05, 0.0261017991),
        (7, 7, 0.05, 1.0),
    ],
)
def test_clopper_pearson(successes: int, n: int, alpha: float, expected: float) -> None:
    assert clopper_pearson_upper(torch.tensor([successes]), n, alpha).item() == pytest.approx(expected, abs=1e-9)


def test_clopper_pearson_is_a_quantile_of_beta() -> None:
    for n in (100, 400):
        assert clopper_pearson_upper(torch.tensor([0]), n).item() == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-12)
    successes = torch.arange(64).view(8, 8)
    ours = clopper_pearson_upper(successes, 64, 0.02)
    theirs = torch.tensor(stats.beta.ppf(0.98, successes.numpy() + 1, 64 - successes.numpy()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "alpha", "expected"), [(128, 0.01, 0.1341228766), (1024, 0.01, 0.0474195978)])
def test_dkw(n: int, alpha: float, expected: float) -> None:
    assert dkw_epsilon(n, alpha) == pytest.approx(expected, abs=1e-10)
    assert dkw_epsilon(100, 0.05) == pytest.approx(0.1223873415, abs=1e-10)


def test_the_bound_of_the_mean() -> None:
    tenth = torch.tensor([0.0] * 90 + [1.0] * 10)
    assert mean_upper_bound(tenth, 0.05).item() == pytest.approx(0.2223873415, abs=1e-10)
    none = torch.zeros(128)
    assert mean_upper_bound(none, 0.01).item() == pytest.approx(0.1341228766, abs=1e-10)
    assert tail_upper_bound(none, 0.5, 0.01).item() == pytest.approx(0.1341228766, abs=1e-10)
    binary = clopper_pearson_upper(torch.tensor(0), 128, 0.01).item()
    assert mean_upper_bound(none, 0.01).item() / binary == pytest.approx(3.795, abs=1e-3)
    # Not more than the Riemann sum of the authors' package, and at most 1/99 less.
    scores = torch.rand(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = torch.linspace(0, 1, 100, dtype=torch.float64)
    below = ((scores[..., None] <= grid[:-1]).double().mean(1) - dkw_epsilon(40, 0.05)).clamp(min=0)
    riemann = 1 - (below * grid.diff()).sum(-1)
    slack = riemann - mean_upper_bound(scores, 0.05)
    assert (slack >= 0).all()
    assert (slack <= 1 / 99).all()


def test_the_bound_of_the_deviation_is_the_worst_distribution_in_the_band() -> None:
    share = math.sqrt(math.log(2 / 0.01) / (2 * 128))  # of the samples may be 1 when all that were seen are 0
    expected = math.sqrt(share * (1 - share))
    assert deviation_upper_bound(torch.zeros(128), 0.01).item() == pytest.approx(expected, abs=1e-12)
    half = torch.tensor([0.0, 1.0]).repeat(8)
    assert deviation_upper_bound(half, 0.05).item() == pytest.approx(0.5, abs=1e-12)
    assert (deviation_upper_bound(torch.rand(50, 5), 0.05) <= 0.5).all()


def test_the_bound_of_the_deviation_is_that_of_a_search_over_switching_levels() -> None:
    scores = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ordered, epsilon = torch.cat([scores.sort().values, torch.ones(1)]), dkw_epsilon(30, 0.05)
    p = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    low = torch.where(p <= epsilon, 0.0, ordered[((p - epsilon) * 30).ceil().long().clamp(1, 30) - 1])
    high = ordered[((p + epsilon) * 30).ceil().long().clamp(1, 31) - 1]
    worst = max(torch.where(p < level, low, high).std(correction=0).item() for level in torch.linspace(0, 1, 401))
    bound = deviation_upper_bound(scores, 0.1).item()
    assert worst - 1e-5 <= bound <= worst + 1e-3


def test_bounds_hold_for_a_known_distribution() -> None:
    # Beta(2, 5): mean 2/7, variance 10/392. At 90 % at most about one in ten bounds may fail; they are far safer.
    draws = torch.tensor(stats.beta.rvs(2, 5, size=(300, 32), random_state=0))
    assert (mean_upper_bound(draws, 0.1) >= 2 / 7).double().mean() > 0.9
    assert (deviation_upper_bound(draws, 0.1) >= math.sqrt(10 / 392)).double().mean() > 0.9


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be between 1 and the number of samples, 4, but got 5"):
        leak_at_k(torch.tensor([1]), 4, 5)
    with pytest.raises(ValueError, match="between 0 and 4 leak"):
        leak_at_k(torch.tensor([5]), 4, 2)
    with pytest.raises(ValueError, match="NaN"):
        expected_best_of_k(torch.tensor([0.1, torch.nan]), 1)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 0.5\], but got 0.6"):
        dkw_epsilon(4, 0.6)
    with pytest.raises(ValueError, match="at least one sample"):
        mean_upper_bound(torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"scores in \[0, 1\], but got 0 to 1.5"):
        mean_upper_bound(torch.tensor([0.0, 1.5]))
    with pytest.raises(ValueError, match=r"successes must be in \[0, 3\]"):
        clopper_pearson_upper(torch.tensor([4]), 3)
