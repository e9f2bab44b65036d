"""The depth score: the published number, and what has no score."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional import depth_score

CONTROL = torch.tensor([0.02, 0.4, 1.0, 2.0], dtype=torch.float64)


def test_the_share_of_the_controls_gaps_that_is_reached() -> None:
    unlearned = torch.tensor([0.5, 0.1, 0.8, 2.6], dtype=torch.float64)
    assert depth_score(CONTROL, unlearned).item() == pytest.approx(2.9 / 3.4, abs=1e-12)
    assert depth_score(CONTROL, unlearned).item() == pytest.approx(0.8529411765, abs=1e-10)


def test_the_control_is_1_and_no_gap_is_0_exactly() -> None:
    gaps = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    assert (depth_score(gaps, gaps) == 1).all()
    assert (depth_score(gaps, torch.zeros_like(gaps)) == 0).all()


def test_a_row_whose_fact_no_layer_of_the_control_lacks_has_no_score() -> None:
    assert depth_score(torch.tensor([[0.05, 0.5]]), torch.tensor([[1.0, 0.25]])).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="a gap for each layer"):
        depth_score(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="at least 0"):
        depth_score(torch.zeros(2), torch.zeros(2), -1.0)
