"""Recovered shares, areas and robustness of metrics, by the numbers of worked examples."""

from __future__ import annotations

import pytest

from lightning_unlearn.functional import (
    curve_area,
    meta_robustness,
    precision_usable,
    quantization_robustness,
    recovery,
    recovery_area,
    recovery_ratio,
    relearning_robustness,
    self_recovery,
    steps_to_recovery,
)

STEPS = [0, 5, 10, 20]
UNLEARNED, CONTROL, ORIGINAL = [0.05, 0.30, 0.50, 0.60], [0.06, 0.10, 0.15, 0.20], [0.90] * 4


def test_recovery_lies_between_control_and_original() -> None:
    shares = recovery(UNLEARNED, CONTROL, ORIGINAL)
    assert shares == pytest.approx([-0.0119047619, 0.25, 0.4666666667, 0.5714285714])
    assert steps_to_recovery(STEPS, shares) == 20
    assert steps_to_recovery(STEPS, shares, 0.24) == 5
    assert steps_to_recovery(STEPS, shares, 0.6) is None
    assert recovery([1.0], [0.5], [0.5]) == [None]


@pytest.mark.parametrize(
    ("scores", "kappa"),
    [
        ((0.289, 0.331, 0.639), -0.136),
        ((0.501, 0.360, 0.544), 0.766),
        ((0.0, 0.360, 0.544), -1.957),
    ],
)
def test_published_scores_at_full_and_at_four_bits(scores: tuple[float, float, float], kappa: float) -> None:
    """GA+GDR on news (arXiv:2410.16454): below the control in bf16, near the original at 4 bits; and GA, a wreck."""
    unlearned, control, original = scores
    assert recovery([unlearned], [control], [original])[0] == pytest.approx(kappa, abs=5e-4)


def test_the_area_is_a_ratio_of_areas() -> None:
    assert curve_area(STEPS, UNLEARNED) == pytest.approx(0.41875)
    assert curve_area(STEPS, CONTROL) == pytest.approx(0.13875)
    area = recovery_area(STEPS, UNLEARNED, CONTROL, ORIGINAL)
    assert area == pytest.approx(0.3678, abs=5e-5)
    shares = [share for share in recovery(UNLEARNED, CONTROL, ORIGINAL) if share is not None]
    assert curve_area(STEPS, shares) == pytest.approx(0.3789, abs=5e-5), "the mean of ratios is another number"
    assert recovery_area([0, 1], [0.1, 0.2], [0.3, 0.3], [0.3, 0.3]) is None


def test_recovery_without_a_control() -> None:
    rho = self_recovery([0.26, 0.40, 0.50, 0.55, 0.58, 0.60], 0.64)
    assert rho[-1] == pytest.approx(0.8947368421)
    assert curve_area([0, 20, 40, 60, 80, 100], [r or 0.0 for r in rho]) == pytest.approx(0.6105263158)
    assert self_recovery([0.5, 0.6], 0.5) == [None, None]


def test_robustness_of_a_metric() -> None:
    relearning = relearning_robustness((0.15, 0.45), (0.20, 0.60))
    quantization = quantization_robustness(0.20, 0.50)
    assert (relearning, quantization) == (pytest.approx(0.75), pytest.approx(0.4))
    assert meta_robustness(relearning, quantization) == pytest.approx(0.5217391304)
    assert quantization_robustness(0.20, 0.50, "loss") == 1.0
    assert quantization_robustness(0.20, 0.0) is None
    assert quantization_robustness(0.2, 0.6, symmetric=True) == pytest.approx(0.5)
    assert relearning_robustness((0.1, 0.2), (0.1, 0.1)) is None
    assert relearning_robustness((0.1, 0.2), (0.1, 0.4), symmetric=True) == pytest.approx(0.5)
    assert meta_robustness(None, 0.4) is None
    assert meta_robustness(0.0, 0.4) == 0.0


def test_a_precision_that_breaks_the_original_says_nothing() -> None:
    assert precision_usable(0.9, 0.721)
    assert not precision_usable(0.9, 0.719)
    assert recovery_ratio(0.289, 0.501) == pytest.approx(1.7336, abs=1e-4)
    assert recovery_ratio(0.008, 0.151) is None


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one value a step"):
        recovery([0.1], [0.1, 0.2], [0.3])
    with pytest.raises(ValueError, match="ascend"):
        curve_area([0, 5, 5], [0.1, 0.2, 0.3])
