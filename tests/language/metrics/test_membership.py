"""Membership inference: areas, true-positive rates at low false-positive rates, intervals, and composite scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_unlearn.classification.metrics.mia import mia_efficacy
from lightning_unlearn.core.intervals import bootstrap_mean, clopper_pearson
from lightning_unlearn.language.metrics.composite import Composite, composite
from lightning_unlearn.language.metrics.membership import MembershipInference, membership_inference, nonmember_share

FORGET, HOLDOUT = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, 0.8, 1.5])


def normal(rows: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(seed)) + shift


def test_both_conventions() -> None:
    ours, muse = (membership_inference(FORGET, HOLDOUT, convention=c).auc for c in ("ou", "muse"))  # type: ignore[arg-type]
    assert ours.value == pytest.approx(8 / 9, abs=1e-12)
    assert ours.value + muse.value == pytest.approx(1, abs=1e-15)
    assert (muse.low, muse.high) == pytest.approx((1 - ours.high, 1 - ours.low))


def test_areas_at_the_ends_have_intervals_too() -> None:
    area = membership_inference(normal(40, -9, 0), normal(30, 9, 1)).auc
    assert (area.value, area.high) == (1.0, 1.0)
    assert area.low == pytest.approx(0.025 ** (1 / 30))  # 30 disjoint pairs, all of which agree
    assert membership_inference(torch.zeros(1), torch.ones(1)).auc.low == pytest.approx(0.025)


def test_delong_and_bootstrap_agree_and_leave_the_global_random_state() -> None:
    forget, holdout = normal(200, 0, 0), normal(150, 0.6, 1)
    state = torch.get_rng_state()
    delong = membership_inference(forget, holdout).auc
    drawn = membership_inference(forget, holdout, interval="bootstrap", draws=500).auc
    assert torch.equal(torch.get_rng_state(), state)
    assert delong.value == drawn.value
    assert (delong.low, delong.high) == pytest.approx((drawn.low, drawn.high), abs=0.015)
    assert delong.low < drawn.value < delong.high


def test_true_positive_rates_at_a_tenth_and_one_percent() -> None:
    holdout = torch.arange(1000).float()
    forget = torch.tensor([-1.0, 0.5, 5.0, 500.0])
    low, one = membership_inference(forget, holdout).tpr
    assert (low.fpr, low.allowed, low.rate.value) == (0.001, 1, 0.5)  # one holdout row may lie below the threshold
    assert (one.fpr, one.allowed, one.rate.value) == (0.01, 10, 0.75)
    assert one.rate == clopper_pearson(3, 4)
    assert membership_inference(forget, holdout[:100]).tpr[0].allowed == 0


def test_random_scores_of_two_equal_sets_are_at_chance() -> None:
    result = membership_inference(normal(400, 0, 2), normal(400, 0, 3))
    assert result.auc.value == pytest.approx(0.5, abs=0.06)  # three standard errors
    assert result.auc.low < 0.5 < result.auc.high


def test_several_scores_over_batches() -> None:
    metric = MembershipInference(("loss", "min_k"))
    forget, holdout = normal(30, 0, 4), normal(20, 1, 5)
    for part in (slice(0, 13), slice(13, 30)):
        index = range(30)[part]
        metric.update({"loss": forget[part], "min_k": -forget[part]}, "forget", index)
    metric.update({"loss": holdout, "min_k": -holdout}, "holdout", range(20))
    result = metric.compute()
    expected = membership_inference(forget, holdout)
    assert result["loss"].auc.value == pytest.approx(expected.auc.value)
    assert result["loss"].auc.value + result["min_k"].auc.value == pytest.approx(1)
    with pytest.raises(ValueError, match="min_k"):
        metric.update({"loss": forget}, "forget")
    with pytest.raises(ValueError, match="fpr"):
        MembershipInference(fprs=(0.0,))


def test_the_classifier_of_soul_is_the_attack_on_classifiers() -> None:
    pytest.importorskip("sklearn")
    members, nonmembers, forget = normal(60, 0, 6), normal(50, 2, 7), normal(40, 1, 8)
    share = nonmember_share(members, nonmembers, forget)
    assert 0 < share < 1
    assert 100 * share == pytest.approx(mia_efficacy(members, nonmembers, forget))


def test_a_diverged_model_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        membership_inference(torch.tensor([0.1, torch.nan]), HOLDOUT)


def test_exact_binomial_and_bootstrap_intervals() -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(7, 90).proportion_ci(0.9, "exact")
    assert clopper_pearson(7, 90, 0.9)[1:] == pytest.approx((expected.low, expected.high))
    assert clopper_pearson(0, 100, 0.9).high == pytest.approx(0.0295130496, abs=1e-9)
    values = normal(300, 2, 9)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std().item() / 300**0.5
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)
    with pytest.raises(ValueError, match="3 hits in 2"):
        clopper_pearson(3, 2)


def test_composite_scores() -> None:
    forgotten: dict[str, Any] = {
        **dict.fromkeys(("extraction_strength", "exact_memorization"), 0.2),
        **dict.fromkeys(("paraphrase_probability", "truth_ratio_prob_mean"), 0.4),
        **dict.fromkeys(("s_loss", "s_zlib", "s_min_k", "s_min_k_plus_plus"), 0.9),
        **{"model_utility": 0.6, "fluency": 0.9},
    }
    result = composite(forgotten)
    assert result.memorisation == pytest.approx(4 / (2 / 0.8 + 2 / 0.6))
    assert result.utility == pytest.approx(2 / (1 / 0.6 + 1 / 0.9))
    assert result.overall == pytest.approx(3 / (1 / result.memorisation + 1 / 0.9 + 1 / result.utility))
    assert composite({**forgotten, "fluency": 0.0}).overall == 0.0
    with pytest.raises(ValueError, match="fluency"):
        composite({**forgotten, "fluency": 1.2})
    metric = Composite()
    metric.update(forgotten)
    assert metric.compute().mean == pytest.approx(result.overall)
