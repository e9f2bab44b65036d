"""Maps of attention, and their spread."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_unlearn.functional.diffusion import attention_map, attention_spread, half_mass_area


def test_uniform_maps_and_maps_of_one_cell() -> None:
    one = torch.zeros(3, 8, 8)
    one[:, 2, 5] = 0.3
    assert attention_spread(torch.full((1, 16, 16), 0.01)).item() == pytest.approx(1)
    assert half_mass_area(torch.full((1, 16, 16), 0.01)).item() == 0.5
    assert attention_spread(one).tolist() == [0.0] * 3
    assert half_mass_area(one).tolist() == [1 / 64] * 3


def test_spread_of_two_cells_and_its_scale() -> None:
    maps = torch.tensor([[3.0, 1.0, 0.0, 0.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert attention_spread(maps).item() == pytest.approx(entropy / math.log(4))
    assert torch.equal(attention_spread(4 * maps), attention_spread(maps))
    assert half_mass_area(maps).item() == 0.25
    assert half_mass_area(torch.tensor([[0.4, 0.3, 0.2, 0.1]])).item() == 0.5


def test_a_map_is_the_mean_over_all_heads_and_the_sum_over_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(2, 3, 16, 5, generator=generator).softmax(-1)
    coarse = torch.rand(2, 1, 4, 5, generator=generator).softmax(-1)
    positions = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    found = attention_map([fine, coarse], positions, (4, 4))
    for row in range(2):
        for y in range(4):
            for x in range(4):
                parts = [fine[row, h, 4 * y + x] for h in range(3)] + [coarse[row, 0, 2 * (y // 2) + x // 2]]
                wanted = torch.stack(parts)[:, positions[row]].sum(1).mean()
                assert found[row, y, x] == pytest.approx(float(wanted), abs=1e-6)
    everything = attention_map([fine, coarse], torch.ones(2, 5, dtype=torch.bool), (4, 4))
    torch.testing.assert_close(everything, torch.ones(2, 4, 4))


def test_layers_are_halved_as_strided_convolutions_halve() -> None:
    assert attention_map([torch.ones(1, 1, 3 * 5, 1)], torch.tensor([[True]]), (5, 9)).shape == (1, 5, 9)
    with pytest.raises(ValueError, match="A layer of 7 places"):
        attention_map([torch.ones(1, 1, 7, 1)], torch.tensor([[True]]), (4, 4))
    with pytest.raises(ValueError, match="at least one layer"):
        attention_map([], torch.tensor([[True]]), (4, 4))


def test_an_empty_map_has_no_spread() -> None:
    for read in (attention_spread, half_mass_area):
        with pytest.raises(ValueError, match="some mass"):
            read(torch.zeros(1, 4))
        with pytest.raises(ValueError, match="two cells"):
            read(torch.ones(1, 1))
