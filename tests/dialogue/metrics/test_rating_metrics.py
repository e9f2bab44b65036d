from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy import stats

from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.metrics.rating_metrics import TURN_STATISTICS, RatingMetrics, compare_judges
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.task import FED_OVERALL
from tests.dialogue.fixtures import rated


def noisy(count: int, noise: float, seed: int = 0) -> tuple[list[float], list[Dialogue]]:
    generator = torch.Generator().manual_seed(seed)
    human = torch.randint(1, 6, (count,), generator=generator).double()
    scores = human + noise * torch.randn(count, generator=generator).double()
    return scores.tolist(), rated(*human.tolist())


def test_scores_meet_the_mean_and_labels_the_majority() -> None:
    rows = [Dialogue(str(i), (Turn("user", "Hi"),), r) for i, r in enumerate([(4, 4, 3, 3), (2, 2, 5), (3, 3), (1, 2)])]
    metric = RatingMetrics()
    metric.update([3.4, 2.2, Rating(3.6, label="3"), 1.5], rows)  # the judge's own label before the nearest one
    found = metric.compute()
    assert found["mae"].item() == pytest.approx((0.1 + 0.8 + 0.6 + 0) / 4)
    assert found["accuracy"].item() == 1
    assert found["spearman"].item() == pytest.approx(stats.spearmanr([3.4, 2.2, 3.6, 1.5], [3.5, 3, 3, 1.5])[0])


def test_what_is_not_parsed_counts_in_the_parse_rate_alone() -> None:
    scores, rows = noisy(20, 0.5)
    metric, kept = RatingMetrics(), RatingMetrics()
    metric.update([*scores[:15], *[Rating(math.nan, parsed=False)] * 5], rows)
    kept.update(scores[:15], rows[:15])
    found, expected = metric.compute(), kept.compute()
    assert found.pop("parse_rate").item() == 0.75
    assert expected.pop("parse_rate").item() == 1
    assert found == expected
    middle = RatingMetrics()
    middle.update([Rating(3.0, parsed=False), 3.5], rows[:2])  # a middle score stands in for what was not found
    assert middle.compute()["parse_rate"].item() == 0.5
    nothing = RatingMetrics(draws=10)
    nothing.update([math.nan] * 3, rows[:3])
    assert math.isnan(nothing.compute()["spearman"].item())


def test_the_mass_of_the_labels_is_measured_where_logits_were_read() -> None:
    metric, text = RatingMetrics(), RatingMetrics()
    metric.update([Rating(1.0, vocab_mass=0.2), Rating(2.0, vocab_mass=0.4), 3.0], rated(1, 2, 3))
    text.update([1.0, 2.0, 3.0], rated(1, 2, 3))
    assert metric.compute()["vocab_mass"].item() == pytest.approx(0.3)
    assert "vocab_mass" not in text.compute()


def test_constant_predictions_have_no_correlation_and_a_warning() -> None:
    metric = RatingMetrics(draws=20)
    metric.update([3.0] * 5, rated(1, 2, 3, 4, 5))
    with pytest.warns(UserWarning, match="gives all 5 dialogues the rating 3, so correlations are undefined"):
        found = metric.compute()
    assert math.isnan(found["spearman"].item())
    assert math.isnan(found["spearman_low"].item())
    assert found["accuracy"].item() == 0.2


def test_a_dialogue_counts_once() -> None:
    scores, rows = noisy(12, 0.5)
    once, twice = RatingMetrics(draws=50), RatingMetrics(draws=50)
    once.update(scores, rows)
    for part in (slice(6, 12), slice(0, 7)):  # in another order and with one row again, as from two processes
        twice.update(scores[part], rows[part])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert twice.compute() == once.compute()


def test_intervals_cover_the_correlation_of_the_population() -> None:
    population, rows = noisy(4000, 1.5)
    truth = stats.spearmanr(population, [row.mean for row in rows])[0]
    covered, widths = 0, []
    for start in range(0, 4000, 100):
        metric = RatingMetrics(names=("spearman",))
        metric.update(population[start : start + 100], rows[start : start + 100])
        low, high = metric.intervals(draws=300)["spearman"][1:]
        covered += low <= truth <= high
        widths.append(high - low)
    assert covered >= 34  # of 40; 38 are expected
    assert 0.1 < sum(widths) / 40 < 0.35


def test_paired_differences_are_sharper_than_two_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, rows = noisy(300, 1.0)
    better = torch.tensor(scores).double()
    worse = better + 0.5 * torch.randn(300, generator=generator).double()
    paired = compare_judges(better, worse, rows, names=("spearman", "kendall", "mae"), draws=300)
    assert paired["spearman"].low > 0
    assert paired["mae"].high < 0
    single = [RatingMetrics(names=("spearman",)) for _ in range(2)]
    for metric, given in zip(single, (better, worse), strict=True):
        metric.update(given, rows)
    first, second = (metric.intervals(draws=300)["spearman"] for metric in single)
    assert paired["spearman"].value == pytest.approx(first.value - second.value)
    assert paired["spearman"].high - paired["spearman"].low < (first.high - first.low + second.high - second.low) / 2
    same = compare_judges(scores, scores, rows, draws=20)["spearman"]
    assert tuple(same) == (0, 0, 0)


def test_judges_are_compared_where_both_have_a_rating() -> None:
    scores, rows = noisy(30, 0.5)
    gaps = [math.nan if i % 3 == 0 else score for i, score in enumerate(scores)]
    assert compare_judges(scores, gaps, rows, draws=20)["spearman"].value == 0
    with pytest.raises(ValueError, match="No dialogue has a rating of both"):
        compare_judges(scores, [math.nan] * 30, rows)


def test_the_statistics_of_turns_are_those_of_uss() -> None:
    metric = RatingMetrics(names=TURN_STATISTICS)
    metric.update([2, 1, 3, 3, 4, 2], rated(2, 2, 3, 3, 3, 3))
    found = metric.compute()
    assert found["uar"].item() == pytest.approx((0.5 + 0.5) / 5)  # labels 1, 4 and 5 have no rows
    assert found["f1_dissatisfied"].item() == pytest.approx(2 * 2 / (3 + 2))
    assert set(found) == {*TURN_STATISTICS, "parse_rate"}


def test_another_scale_and_wrong_arguments() -> None:
    metric = RatingMetrics(FED_OVERALL)
    metric.update([0.2, 3.9], rated(0, 4))
    assert metric.compute()["accuracy"].item() == 1
    with pytest.raises(ValueError, match="There are 1 ratings for 2 dialogues"):
        metric.update([1.0], rated(0, 4))
    with pytest.raises(ValueError, match="names must be 'spearman', 'pearson'"):
        RatingMetrics(names=("rank",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has seen no ratings"):
        RatingMetrics().intervals()
