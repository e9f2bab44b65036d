"""Truth ratios: numbers of the published definitions."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional.language.privacy import priv_leak, s_mia
from lightning_unlearn.functional.language.truth_ratio import truth_ratio, truth_ratio_score

RIGHT = torch.tensor([0.2], dtype=torch.float64).log()
WRONG = torch.tensor([[0.4, 0.1, 0.1, 0.05, 0.05]], dtype=torch.float64).log()


@pytest.mark.parametrize(("variant", "ratio"), [("arithmetic", 0.7), ("geometric", 0.5)])
def test_both_means_of_the_wrong_answers(variant: str, ratio: float) -> None:
    assert truth_ratio(RIGHT, WRONG, variant).item() == pytest.approx(ratio, abs=1e-9)  # type: ignore[arg-type]
    for aggregate, expected in (("forget", ratio), ("retain", 1 - ratio)):
        score = truth_ratio_score(RIGHT, WRONG, aggregate, variant)  # type: ignore[arg-type]
        assert score.item() == pytest.approx(expected, abs=1e-9)


def test_extent_of_knowledge() -> None:
    assert truth_ratio_score(RIGHT, WRONG, "prob_mean").item() == pytest.approx(2 / 3, abs=1e-9)
    assert truth_ratio_score(RIGHT, WRONG, "prob_mean", epsilon=0).item() == pytest.approx(2 / 3, abs=1e-12)


def test_the_geometric_ratio_is_never_larger_and_the_forget_score_is_in_0_1() -> None:
    generator = torch.Generator().manual_seed(0)
    right, wrong = -3 * torch.rand(50, generator=generator), -3 * torch.rand(50, 5, generator=generator)
    assert (truth_ratio(right, wrong) <= truth_ratio(right, wrong, "arithmetic") + 1e-12).all()
    score = truth_ratio_score(right, wrong)
    assert ((score >= 0) & (score <= 1)).all()


def test_without_epsilon_a_collapsed_model_keeps_its_order() -> None:
    right, wrong = torch.tensor([-900.0, -950.0]), torch.full((2, 3), -1000.0)
    assert truth_ratio(right, wrong).tolist() == [0.0, 0.0]
    first, second = truth_ratio(right, wrong, epsilon=0)
    assert 0 < first < second


def test_a_row_with_fewer_wrong_answers_is_the_row_alone() -> None:
    wrong = torch.tensor([[-1.0, -2.0, torch.nan], [-1.0, -2.0, -3.0]])
    right = torch.tensor([-1.0, -1.0])
    for variant in ("geometric", "arithmetic"):
        alone = truth_ratio(right[:1], wrong[:1, :2], variant)  # type: ignore[arg-type]
        assert torch.equal(truth_ratio(right, wrong, variant)[:1], alone)  # type: ignore[arg-type]


def test_wrong_shapes_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, W\)"):
        truth_ratio(RIGHT, WRONG[0])
    with pytest.raises(ValueError, match="harmonic"):
        truth_ratio(RIGHT, WRONG, "harmonic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="utility"):
        truth_ratio_score(RIGHT, WRONG, "utility")  # type: ignore[arg-type]


def test_privacy_leakage_of_published_areas() -> None:
    assert priv_leak(8 / 9) == pytest.approx(-77.7777777622, abs=1e-9)
    assert priv_leak(0.9991, 0.5236) == pytest.approx(-99.8110831025, abs=1e-9)
    assert [priv_leak(area) for area in (0.0, 1.0, 0.5)] == pytest.approx([100, -100, 0], abs=1e-6)
    assert priv_leak(1 - 0.9991, 1 - 0.5236, "muse") == pytest.approx(priv_leak(0.9991, 0.5236), abs=1e-9)
    with pytest.raises(ValueError, match="divides"):
        priv_leak(0.5, 1.0, epsilon=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        priv_leak(1.2)


def test_closeness_to_the_retrained_models_attack() -> None:
    assert s_mia(0.38, 0.38) == 1
    assert s_mia(0.9, 0.4) == 0  # clipped
    with pytest.raises(ValueError, match="0"):
        s_mia(0.5, 0.0)
