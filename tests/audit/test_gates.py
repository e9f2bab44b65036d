"""Gates: the ratio kappa, its linear form, and the bounds that decide."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
import torch

from lightning_unlearn.audit import degeneration, gate
from lightning_unlearn.audit.bounds import Estimate, Sample
from tests.audit.sets import RETAINED, RUINED, SOUND, SOUND_OF_20, SUPPRESSED, UNTOUCHED, WRECK, kept, result_of, rows


def near(value: float, digits: int = 4) -> object:
    return pytest.approx(value, abs=0.5001 * 10**-digits)


def test_a_sound_model_is_below_the_threshold() -> None:
    result = result_of(SOUND)
    assert result.kappa == pytest.approx(0, abs=1e-12)
    assert result.small.mean == pytest.approx(-0.088)
    assert result.small.error == near(0.01935, 5)
    assert result.small.upper == near(-0.0562)
    assert result.passed
    assert (result.recovers, result.known, result.traceable) == (False, False, False)


def test_twenty_rows_do_not_decide_what_eighty_five_would() -> None:
    result = result_of(SOUND_OF_20)
    assert result.small.mean == pytest.approx(-0.04)
    assert result.small.upper == near(0.0422)
    assert not result.passed
    assert result.needed == 85


def test_a_rounded_model_that_answers_again_recovers_among_eight_tests() -> None:
    result = result_of(SUPPRESSED, "int4", comparisons=8)
    assert result.kappa == near(0.682, 3)
    assert result.small.mean == pytest.approx(0.512)
    assert result.small.lower_any == near(0.3925)  # z 2.498
    assert result.recovers


def test_an_untouched_model_is_known() -> None:
    result = result_of(UNTOUCHED)
    assert result.kappa == 1
    assert result.large.mean == pytest.approx(0.66)
    assert result.large.lower == near(0.6197)
    assert result.known


def test_a_wreck_passes_the_gate_and_fails_what_was_to_be_kept() -> None:
    result, left = result_of(WRECK), kept(RUINED)
    assert result.kappa == near(-0.091, 3)
    assert result.passed
    assert (left.mean, left.upper) == (pytest.approx(-0.79), near(-0.741, 3))
    good = kept(RETAINED)
    assert (good.control, good.unlearned) == (pytest.approx(0.90), pytest.approx(0.88))
    assert (good.mean, good.lower) == (pytest.approx(0.07), near(0.0308))


@pytest.mark.parametrize(
    ("unlearned", "control", "original", "kappa"),
    [
        (28.9, 33.1, 63.9, -0.136),
        (50.1, 36.0, 54.4, 0.766),
        (0.0, 36.0, 54.4, -1.957),
    ],
)
def test_kappa_of_published_means(unlearned: float, control: float, original: float, kappa: float) -> None:
    result = gate([original / 100] * 2, [control / 100] * 2, [unlearned / 100] * 2)
    assert result.kappa == near(kappa, 3)


def test_no_leak_among_28_probes_is_too_few_and_among_29_enough() -> None:
    few, enough = (gate([1.0] * n, [0.0] * n, [0.0] * n) for n in (28, 29))
    assert few.small.upper == enough.small.upper == pytest.approx(-0.1)  # no spread at all
    assert few.zero_bound == pytest.approx(1 - 0.05 ** (1 / 28))
    assert (few.passed, enough.passed) == (False, True)
    assert few.needed == 29


def test_the_ratio_has_the_bounds_of_its_linear_form() -> None:
    for counts in (SOUND, SOUND_OF_20, SUPPRESSED, UNTOUCHED):
        result = result_of(counts)
        assert result.kappa_lower is not None
        assert result.kappa_upper is not None
        assert result.kappa_lower <= result.kappa <= result.kappa_upper
        at = gate(*rows(counts), d=max(result.kappa_upper, 1e-9), D=1.0).small if result.kappa_upper < 1 else None
        assert at is None or at.upper == pytest.approx(0, abs=1e-9)


def test_the_bootstrap_over_entities_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    entity = np.repeat(np.arange(25), rng.integers(2, 9, 25))
    hidden = rng.uniform(0, 1, 25)[entity]
    u = (rng.uniform(size=len(entity)) < 0.6 * hidden**2).astype(float)
    o, c = (rng.uniform(size=len(entity)) < 0.9).astype(float), (rng.uniform(size=len(entity)) < 0.1).astype(float)
    result = gate(o, c, u, clusters=[f"author {k}" for k in entity])
    assert (result.method, result.clusters) == ("bca", 25)
    t = u - 0.9 * c - 0.1 * o
    sums, sizes = np.bincount(entity, t), np.bincount(entity).astype(float)

    def mean(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.sum(axis) / b.sum(axis)

    theirs = stats.bootstrap((sums, sizes), mean, paired=True, confidence_level=0.9, n_resamples=20_000, method="BCa")
    spread = theirs.standard_error
    assert result.small.mean == pytest.approx(t.mean())
    assert result.small.error == pytest.approx(spread, rel=0.05)
    assert result.small.lower == pytest.approx(theirs.confidence_interval.low, abs=0.1 * spread)
    assert result.small.upper == pytest.approx(theirs.confidence_interval.high, abs=0.1 * spread)
    assert result.kappa_lower < result.kappa < result.kappa_upper


def test_entities_count_from_ten_on_and_blanks_stand_alone() -> None:
    o, c, u = rows(SOUND)
    nine, ten, blank = ([f"{k % 9}" for k in range(100)], [f"{k % 10}" for k in range(100)], [""] * 100)
    assert [gate(o, c, u, clusters=x).method for x in (nine, ten, blank)] == ["normal", "bca", "normal"]
    assert [gate(o, c, u, clusters=x).clusters for x in (nine, ten, blank)] == [9, 10, 0]
    assert gate(o, c, u, clusters=["a"] * 50 + [""] * 50).clusters == 51


def test_the_worse_of_two_controls_counts() -> None:
    o, c, u = rows(SOUND)
    ignorant = [0.0] * 100
    both, one, other = gate(o, [c, ignorant], u), gate(o, c, u), gate(o, ignorant, u)
    assert both.small.upper == max(one.small.upper, other.small.upper)
    assert both.small.lower_any == min(one.small.lower_any, other.small.lower_any)
    assert both.kappa == max(one.kappa, other.kappa)
    assert both.noise_floor == pytest.approx((0 - 0.08) / (0.96 - 0.08))
    assert one.noise_floor is None


def test_matched_rows_take_the_place_of_a_control() -> None:
    o, _, u = rows(SOUND)
    unseen = [1.0] * 4 + [0.0] * 46
    result = gate(o, None, u, matched=(unseen, unseen))
    assert result.control == pytest.approx(0.08)
    assert result.kappa == pytest.approx((0.08 - 0.08) / (0.96 - 0.08), abs=1e-12)
    expected = np.var(np.array(u) - 0.1 * np.array(o), ddof=1) / 100 + np.var(0.9 * np.array(unseen), ddof=1) / 50
    assert result.small.error == pytest.approx(expected**0.5)  # unpaired: wider than rows side by side
    assert result.small.error > result_of(SOUND).small.error


def test_two_samples_are_resampled_apart() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 5)
    a, b = rng.uniform(size=100), rng.uniform(size=100)
    one = Estimate([Sample(a, b, groups)], 0.95).at(0.1)
    two = Estimate([Sample(a, b, groups), Sample(-a, -b, groups)], 0.95).at(0.1)
    assert two.mean == pytest.approx(0)
    assert two.error == pytest.approx(one.error * 2**0.5, rel=0.05)


def test_rates_of_degenerate_answers() -> None:
    result = degeneration("empty", [0.0] * 100, [1.0] * 30 + [0.0] * 70)
    assert (result.mean, result.unlearned) == (pytest.approx(0.3), pytest.approx(0.3))
    assert result.lower == pytest.approx(0.3 - 1.6448536 * (0.3 * 0.7 / 99) ** 0.5)


def test_scores_may_be_tensors_and_one_row_is_never_enough() -> None:
    o, c, u = (torch.tensor(x) for x in rows(SOUND))
    assert gate(o, c, u) == result_of(SOUND)
    alone = gate([1.0], [0.0], [0.0])
    assert not alone.passed
    assert not gate([1.0], [0.0], [1.0]).known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0], [0.0], [0.0, 0.0]), "control 0 model has 1 scores"),
        (([1.0, 1.0], [0.0, 0.0], [0.0]), "unlearned model has 1 scores"),
        (([], [], []), "one number a row"),
        (([1.0, nan], [0.0, 0.0], [0.0, 0.0]), "1 of 2 are not, such as nan"),
        (([1.0, 2.0], [0.0, 0.0], [0.0, 0.0]), "such as 2.0"),
        (([1.0, 1.0], [0.0, 0.0], [0.0, 0.0], 0.3, 0.25), "d=0.3 and D=0.25"),
        (([1.0, 1.0], [0.0, 0.0], [0.0, 0.0], 0.1, 0.25, ["a"]), "1 clusters, but 2 scores"),
    ],
)
def test_wrong_scores_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate(*arguments)  # type: ignore[arg-type]
