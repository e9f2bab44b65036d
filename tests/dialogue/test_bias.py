from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lightning_unlearn.dialogue.bias import dialogue_lengths, length_bias, order_bias, position_bias
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_length_counts_against_a_judge_only_where_people_do_not_mind_it() -> None:
    length, noise, other = normal(3, 400)
    human = -length + 0.5 * noise
    fair = length_bias(human + 0.3 * other, length, human, draws=200)
    assert fair.spearman.high < -0.5
    assert fair.human is not None
    assert fair.human.high < -0.5
    assert fair.partial is not None
    assert fair.partial.low < 0 < fair.partial.high
    biased = length_bias(human + length, length, human, draws=200)
    assert biased.partial is not None
    assert biased.partial.low > 0.3


def test_the_partial_correlation_is_that_of_what_ranks_leave() -> None:
    scores, length, human = normal(3, 60)
    ranks = [torch.from_numpy(stats.rankdata(side)) for side in (scores, length, human)]
    left = []
    for side in ranks[:2]:
        slope, intercept = stats.linregress(ranks[2], side)[:2]
        left.append(side - slope * ranks[2] - intercept)
    found = length_bias(scores, length, human, draws=2).partial
    assert found is not None
    assert found.value == pytest.approx(stats.pearsonr(*left)[0])


def test_a_constant_judge_has_no_length_bias_to_speak_of() -> None:
    found = length_bias([3.0] * 5, [1, 2, 3, 4, 5], draws=10)
    assert all(map(math.isnan, found.spearman))
    assert found.partial is None
    with pytest.raises(ValueError, match=r"there are \{'scores': 2, 'lengths': 3\}"):
        length_bias([1.0, 2.0], [1, 2, 3])


def test_lengths_are_of_what_is_said() -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert dialogue_lengths([Dialogue("a", turns), Dialogue("b", turns, response="Bye")]).tolist() == [7, 10]


def test_scores_that_fall_along_a_list_are_found() -> None:
    noise, place = normal(20).repeat_interleave(10), torch.arange(10).repeat(20)  # each score at each place
    assert position_bias(noise, place, draws=200).low < 0 < position_bias(noise, place, draws=200).high
    assert position_bias(noise - 0.3 * place, place, draws=200).high < -0.2


def test_the_order_of_examples_shifts_scores() -> None:
    base = normal(100)
    steady = order_bias(torch.stack([base, base, base]), draws=50)
    assert all(tuple(shift) == pytest.approx((0, 0, 0), abs=1e-12) for shift in steady.shifts)
    assert (steady.spread.value, steady.changed.value) == pytest.approx((0, 0), abs=1e-12)
    moved = order_bias(torch.stack([base, base + 0.8 * (torch.arange(100) < 25)]), draws=200)
    assert moved.shifts[1].value == pytest.approx(0.1)
    assert moved.shifts[1].low > 0.05
    assert moved.spread.value == pytest.approx(0.1)
    assert moved.changed.value == 0.25
    with pytest.raises(ValueError, match="shape"):
        order_bias(base[None])
