"""Intervals of paired differences over seeds and images."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import t

from lightning_unlearn.benchmarks.paired import paired_difference


def test_a_single_seed_has_students_interval_over_images() -> None:
    found = paired_difference(torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    width = t.ppf(0.975, 3) * math.sqrt(14 / 3 / 4)
    assert (found.mean, found.seeds, found.images) == (3.0, 1, 4)
    assert found.low == pytest.approx(3 - width)
    assert found.high == pytest.approx(3 + width)


def test_equal_differences_have_no_width() -> None:
    found = paired_difference(torch.full((3, 5), 0.5))
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_seeds_that_differ_widen_the_interval_as_a_few_values_do() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 50)
    found = paired_difference(values)
    assert found.high == pytest.approx(t.ppf(0.975, 2) / math.sqrt(3))  # as of three values alone


def test_mean_squares_of_a_crossed_design() -> None:
    # Seeds of +-1 and images of +-2 add up, so that nothing remains: M_s = 4, M_i = 16 and M_e = 0.
    seeds, images = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0, -2.0]])
    found = paired_difference(seeds + images, level=0.9)
    by_seed, by_image = 2 * 2.0, 2 * 8.0
    variance = by_seed + by_image
    freedom = variance**2 / (by_seed**2 + by_image**2)
    assert found.high == pytest.approx(t.ppf(0.95, freedom) * math.sqrt(variance / 4))


@pytest.mark.parametrize(("seeds", "images"), [(3, 12), (5, 6)])
def test_the_interval_covers_the_mean_as_often_as_it_says(seeds: int, images: int) -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        draws = [torch.randn(*shape, generator=generator) for shape in ((seeds, 1), (1, images), (seeds, images))]
        found = paired_difference(0.5 * draws[0] + draws[1] + draws[2])
        covered += found.low <= 0 <= found.high
    assert covered / 400 >= 0.93


def test_claims_hold_where_all_of_the_interval_is_on_their_side() -> None:
    values = torch.tensor([[0.9, 1.0, 1.1, 1.0]])
    found = paired_difference(values)
    assert found.above() == "holds"
    assert found.above(1.0) == "undecided"
    assert found.above(2.0) == "does not hold"


def test_what_cannot_be_an_interval_is_an_error() -> None:
    with pytest.raises(ValueError, match="two images at least"):
        paired_difference(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="differences"):
        paired_difference(torch.tensor([[1.0, math.nan]]))
