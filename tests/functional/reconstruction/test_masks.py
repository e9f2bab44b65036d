"""Numbers of measured columns, as of fastMRI and SMUG."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.reconstruction.masks import MaskPattern, column_mask

COUNTS = [
    *((368, 4, 92, 29), (368, 8, 46, 15), (320, 4, 80, 26), (320, 8, 40, 13)),
    *((96, 4, 24, 8), (96, 8, 12, 4), (64, 4, 16, 5), (64, 8, 8, 3)),
]


def block_of(mask: Tensor) -> int:
    """Length of the run of measured columns around zero frequency."""
    centre = len(mask) // 2
    left = next((i for i in range(centre + 1) if not mask[centre - i]), centre + 1)
    right = next((i for i in range(len(mask) - centre) if not mask[centre + i]), len(mask) - centre)
    return left + right - 1


@pytest.mark.parametrize(("width", "acceleration", "lines", "block"), COUNTS)
@pytest.mark.parametrize("pattern", ["random", "gaussian"])
def test_numbers_of_lines(width: int, acceleration: int, lines: int, block: int, pattern: MaskPattern) -> None:
    masks = [column_mask(width, acceleration, pattern, seed=seed) for seed in range(20)]
    assert {int(mask.sum()) for mask in masks} == {lines}
    assert min(map(block_of, masks)) == block  # neighbours may be measured by chance
    start = (width - block + 1) // 2
    assert all(mask[start : start + block].all() for mask in masks)


@pytest.mark.parametrize("pattern", ["random", "gaussian", "equispaced"])
def test_the_seed_decides(pattern: MaskPattern) -> None:
    torch.manual_seed(0)
    first = column_mask(320, 4, pattern, seed=3)
    torch.manual_seed(1)
    assert torch.equal(first, column_mask(320, 4, pattern, seed=3))
    assert any(not torch.equal(first, column_mask(320, 4, pattern, seed=seed)) for seed in range(4, 8))


@pytest.mark.parametrize("width", range(1, 24))
@pytest.mark.parametrize("pattern", ["random", "gaussian", "equispaced"])
def test_zero_frequency_is_always_measured(width: int, pattern: MaskPattern) -> None:
    for acceleration in {1, min(width, 2.5), min(width, 4), width}:
        mask = column_mask(width, acceleration, pattern)
        assert mask[width // 2]
        assert pattern == "equispaced" or mask.sum() == max(1, round(width / acceleration))


def test_every_column_is_measured_without_acceleration() -> None:
    for pattern in ("random", "gaussian", "equispaced"):
        assert column_mask(15, 1, pattern, center_fraction=0.2).all()


def test_outer_columns_of_an_equispaced_mask_are_at_even_distances() -> None:
    width, acceleration, block = 368, 4, 29
    distance = acceleration * (width - block) / (width - block * acceleration)  # 5.38
    for seed in range(10):
        mask = column_mask(width, acceleration, "equispaced", seed=seed)
        outer = mask[: (width - block) // 2 - 6].nonzero().flatten()
        assert set(outer.diff().tolist()) <= {int(distance), int(distance) + 1}
        assert abs(int(mask.sum()) - width / acceleration) <= 3


def test_gaussian_density_falls_with_the_distance() -> None:
    share = torch.stack([column_mask(96, 4, "gaussian", seed=seed).float() for seed in range(300)]).mean(0)
    near, far = share[30:42].mean(), share[:12].mean()
    # Without replacement the odds are at most those of the densities: exp(-(12/24)^2) : exp(-(42/24)^2) = 16.6.
    assert 3 < near / far < 40
    uniform = torch.stack([column_mask(96, 4, seed=seed).float() for seed in range(300)]).mean(0)
    assert uniform[:44].mean() == pytest.approx(16 / 88, abs=0.01)


def test_a_very_narrow_density_still_gives_all_lines() -> None:
    assert column_mask(368, 4, "gaussian", gaussian_width=1e-3).sum() == 92


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acceleration": 0.5}, "acceleration must be in"),
        ({"acceleration": 65}, "acceleration must be in"),
        ({"center_fraction": 1.5}, "center_fraction must be in"),
        ({"gaussian_width": 0.0}, "gaussian_width must be greater"),
        ({"pattern": "spiral"}, "pattern must be one of"),
    ],
)
def test_what_makes_no_mask_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        column_mask(64, **options)
