from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_unlearn import ColumnSampling


@pytest.mark.parametrize(("width", "acceleration", "lines"), [(368, 4, 92), (368, 8, 46), (96, 4, 24), (64, 8, 8)])
def test_a_mask_has_a_share_of_the_columns(width: int, acceleration: float, lines: int) -> None:
    for pattern in ("random", "gaussian"):
        sampling = ColumnSampling(acceleration, pattern)
        assert {int(sampling(width, row).sum()) for row in range(20)} == {lines}


def test_a_mask_is_a_function_of_seed_and_row() -> None:
    masks = [ColumnSampling(seed=seed)(96, row) for seed in (0, 1) for row in (0, 1, 2)]
    again = [ColumnSampling(seed=seed)(96, row) for seed in (0, 1) for row in (0, 1, 2)]
    assert all(map(torch.equal, masks, again))
    assert len({tuple(mask.tolist()) for mask in masks}) == 6


def test_a_fixed_mask_is_that_of_all_rows() -> None:
    sampling = ColumnSampling(fixed=True, seed=3)
    assert torch.equal(sampling(96, 0), sampling(96, 17))
    assert not torch.equal(sampling(96, 0), ColumnSampling(fixed=True, seed=4)(96, 0))


def test_another_acceleration_keeps_the_kind() -> None:
    sampling = ColumnSampling(4, "equispaced", center_fraction=0.08, seed=5)
    assert sampling.at(8) == ColumnSampling(8, "equispaced", seed=5)
    for acceleration in (2, 3, 4, 5, 6, 7, 8):
        assert sampling.at(acceleration)(96, 0).sum().item() == pytest.approx(96 / acceleration, abs=3)


def test_a_mask_comes_from_a_file(tmp_path: Path) -> None:
    mask = torch.arange(64) % 3 == 0
    np.save(tmp_path / "m.npy", mask[None, None].float().numpy())
    torch.save(mask, tmp_path / "m.pt")
    for name in ("m.npy", "m.pt"):
        sampling = ColumnSampling(file=str(tmp_path / name))
        assert torch.equal(sampling(64, 0), mask)
        assert torch.equal(sampling(64, 1), mask)
        assert sampling.at(4)(64, 0).sum() == 16
        with pytest.raises(ValueError, match=r"the shape \(96,\)"):
            sampling(96, 0)
    with pytest.raises(FileNotFoundError, match="no mask"):
        ColumnSampling(file=str(tmp_path / "other.npy"))(64, 0)
    with pytest.raises(ValueError, match=r"\.npy or a \.pt"):
        ColumnSampling(file="mask.mat")(64, 0)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"acceleration": 0.5}, "acceleration"), ({"pattern": "radial"}, "pattern"), ({"center_fraction": 2}, "center")],
)
def test_settings_are_checked(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ColumnSampling(**settings)
