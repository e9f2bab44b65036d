from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.task import FED_OVERALL
from tests.dialogue.echo import EchoJudge


def judged(count: int, seed: int, noise: float = 0.6) -> tuple[Tensor, Tensor]:
    """Scores of a judge that is too generous, and people's ratings, whose spread grows with the score."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(count, generator=generator).double() * 4 + 1
    spread = noise * score / 3 * torch.randn(count, generator=generator).double()
    return score, (1 + (score - 1) ** 2 / 4 + spread).clamp(1, 5)


class Constant:
    """Gives every dialogue the same score."""

    def __init__(self, score: float) -> None:
        self.score = score

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        return [Rating(self.score) for _ in dialogues]


def test_intervals_hold_the_rating_as_often_as_they_say() -> None:
    """200 fits to 60 dialogues and one new dialogue each: coverage is at least the level, for each of three levels."""
    inside = {0.5: 0, 0.8: 0, 0.9: 0}
    for seed in range(200):
        scores, human = judged(61, seed)
        calibration = Calibration(seed=seed, draws=1).fit(scores[1:], human[1:])
        for level in inside:
            _, low, high = calibration.interval(float(scores[0]), level)
            inside[level] += low <= human[0] <= high
    for level, hits in inside.items():
        error = math.sqrt(level * (1 - level) / 200)
        # 30 residuals: coverage is in [level, level + 1/31], and higher where a rating is cut off at the scale's end.
        assert level - 3 * error <= hits / 200 <= level + 1 / 31 + 3 * error + 0.03, (level, hits)


def test_calibrated_scores_are_nearer_to_people_and_in_the_same_order() -> None:
    scores, human = judged(400, 0)
    calibration = Calibration(draws=50).fit(scores, human)
    new, truth = judged(400, 1)
    assert (calibration(new) - truth).abs().mean() < 0.75 * (new - truth).abs().mean()
    assert (calibration(new.sort().values).diff() >= 0).all()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:200]
    model = IsotonicRegression(y_min=1, y_max=5, out_of_bounds="clip").fit(scores[order].numpy(), human[order].numpy())
    ends = np.array([-3.0, 0.5, *new.tolist(), 99.0])
    np.testing.assert_allclose(calibration(torch.from_numpy(ends)).numpy(), model.predict(ends), atol=1e-12)


def test_below_what_people_rated_it_falls_to_the_bottom_of_the_scale_at_the_floor() -> None:
    torch.manual_seed(0)
    scores, human = 3 + torch.rand(80).double(), 2 + 2 * torch.rand(80).double()
    plain, floored = Calibration(draws=10).fit(scores, human), Calibration(draws=10).fit(scores, human, floor=1.0)
    corner, lowest = plain.scores[0], plain.ratings[0]
    assert float(plain(1.0)) == float(plain(2.0)) == lowest > 1.5
    assert float(floored(1.0)) == float(floored(0.0)) == 1.0
    assert float(floored(2.0)) == pytest.approx(1 + (lowest - 1) / (corner - 1))
    above = scores[scores >= corner]
    assert 40 <= len(above) < 80
    assert torch.equal(floored(above), plain(above))
    assert floored.spearman == plain.spearman
    assert Calibration(draws=10).fit(scores, human, floor=4.0).scores == plain.scores


def test_few_dialogues_make_the_whole_scale() -> None:
    scores, human = judged(12, 0)
    calibration = Calibration(draws=5).fit(scores, human)  # 6 residuals: at most the level 6/7
    assert calibration.interval(3.0, 0.9)[1:] == (1, 5)
    assert calibration.half_width(0.8) == calibration.residuals[5]
    assert calibration.half_width(0.5) == calibration.residuals[3]


def test_a_judge_that_guesses_is_not_trusted() -> None:
    scores, human = judged(100, 0)
    good = Calibration(draws=200).fit(scores, human)
    good.require_trust()
    for guess in (scores.flip(0), -scores, torch.ones(100)):
        bad = Calibration(draws=200).fit(guess, human)
        assert good.trusted
        assert not bad.trusted
        with pytest.raises(ValueError, match="do not agree with people's ratings: Spearman's correlation is"):
            bad.require_trust()


def test_a_file_gives_the_same_calibration(tmp_path: Path) -> None:
    scores, human = judged(60, 0)
    for number, given in enumerate((scores, torch.ones(60))):
        calibration = Calibration(draws=20).fit(given, human)
        calibration.save(path := tmp_path / f"{number}.json")
        loaded = Calibration.load(path)
        assert torch.equal(loaded(scores), calibration(scores))
        assert loaded.interval(2.2) == calibration.interval(2.2)
        assert loaded.trusted == calibration.trusted
        assert str(loaded.spearman) == str(calibration.spearman)
    (tmp_path / "other.json").write_text('{"scores": []}')
    with pytest.raises(ValueError, match="is not a file of Calibration"):
        Calibration.load(tmp_path / "other.json")


def test_a_calibration_knows_its_judge_also_from_a_file(tmp_path: Path) -> None:
    scores, human = judged(60, 0)
    calibration = Calibration(draws=5).fit(scores, human, judge=EchoJudge())
    calibration.save(tmp_path / "judge.json")
    loaded = Calibration.load(tmp_path / "judge.json")
    assert loaded.fingerprint == calibration.fingerprint
    assert loaded.fingerprint is not None
    assert loaded.fingerprint.spread == pytest.approx(float(scores.std()))
    loaded.require_judge(EchoJudge())
    with pytest.raises(ValueError, match=r"another judge.*differ from those of that one by 2\.\d+ on average"):
        loaded.require_judge(Constant(4.5))
    Calibration(draws=5).fit(scores, human).require_judge(Constant(4.5))  # of scores alone, nothing is known


def test_judges_are_compared_by_the_mean_difference_of_what_both_have_rated() -> None:
    scores, human = judged(60, 0)
    own = [3.0] * 7 + [math.nan]
    calibration = Calibration(draws=5).fit(scores, human, judge=own)
    limit = 0.4 * float(scores.std())
    calibration.require_judge(Constant(3 + 0.99 * limit))
    with pytest.raises(ValueError, match="another judge"):
        calibration.require_judge(Constant(3 + 1.01 * limit))
    with pytest.raises(ValueError, match="found no rating"):
        calibration.require_judge(Constant(math.nan))
    with pytest.raises(ValueError, match="7 scores for the 8 dialogues"):
        Calibration(draws=5).fit(scores, human, judge=own[:7])


@pytest.mark.parametrize("change", [{"dialogues": "of another version"}, {"scores": (math.nan,) * 8}])
def test_a_judge_that_can_not_be_compared_is_warned_of(change: dict[str, Any]) -> None:
    scores, human = judged(60, 0)
    calibration = Calibration(draws=5).fit(scores, human, judge=EchoJudge())
    assert calibration.fingerprint is not None
    calibration.fingerprint = replace(calibration.fingerprint, **change)
    with pytest.warns(UserWarning, match="cannot be checked that the calibration belongs to this judge"):
        calibration.require_judge(Constant(4.5))


def test_what_can_not_be_calibrated_is_refused() -> None:
    with pytest.raises(RuntimeError, match="not fitted"):
        Calibration()(3.0)
    scores, human = judged(20, 0)
    with pytest.raises(ValueError, match=r"Ratings must be in \[0, 4\]"):
        Calibration(FED_OVERALL).fit(scores, human + 1)
    with pytest.raises(ValueError, match="at least 8"):
        Calibration().fit(scores[:7], human[:7])
    with pytest.raises(ValueError, match=r"20 of 20 scores are NaN or infinite. A judge gives NaN where it finds no"):
        Calibration().fit(torch.full((20,), torch.nan), human)
    for wrong in (["3"] * 20, [None] * 20, [Rating(3.0)] * 20):
        with pytest.raises(
            TypeError, match=r"scores must be numbers, but got .*\[rating.score for rating in ratings\]"
        ):
            Calibration().fit(wrong, human)  # type: ignore[arg-type]
    calibration = Calibration(draws=5).fit(scores, human)
    assert math.isnan(calibration(math.nan))
    with pytest.raises(ValueError, match="The score is NaN"):
        calibration.interval(math.nan)
