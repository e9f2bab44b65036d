from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_unlearn import (
    Calibration,
    DialogueJudge,
    DialogueQualityCallback,
    GradientAscent,
    LanguageDataModule,
    LitCausalLM,
    RatingTask,
    controls_of,
    dialogue_quality,
    neutral_seeds,
)
from lightning_unlearn.dialogue.quality import check_other_model
from tests.dialogue.echo import Contrary, EchoJudge, collapsed, echo, trusted
from tests.helpers import save_resumable, trainer

TOLD = controls_of([3.0, 4.0], {"empty": [1.0, 2.0]})


def untrusted() -> Calibration:
    scores = torch.linspace(1, 5, 40)
    return Calibration().fit(scores, 3 + torch.arange(40) % 2)


def test_differences_are_paired() -> None:
    sets = ["retain"] * 4 + ["neutral"] * 2 + ["forget"]
    before, after = [1.0, 2.0, 4.0, 5.0, 3.0, 3.0, 4.0], [0.5 + 1, 1.5, 3.5, 4.5, 2.0, math.nan, 5.0]
    found = dialogue_quality(sets, before, after, trusted(), TOLD)
    retain, neutral, forget = (found.sets[name] for name in ("retain", "neutral", "forget"))
    assert retain.difference.value == pytest.approx((0.5 - 0.5 - 0.5 - 0.5) / 4, abs=0.05)  # isotonic, nearly 1:1
    assert (retain.raw_before, retain.raw_after) == (3.0, 2.75)
    assert (neutral.n, neutral.unrated) == (1, 1)
    assert math.isnan(neutral.difference.low)  # one conversation says nothing of others
    assert forget.difference.value > 0.9
    assert found.drop is not None
    assert found.drop.value == pytest.approx((1.0 + 1.0) / 5, abs=0.05)  # rows to forget are left out
    # Paired: the interval of the difference is much narrower than that of the ratings.
    assert retain.difference.high - retain.difference.low < retain.after.high - retain.after.low
    same = dialogue_quality(sets, before, before, trusted(), TOLD)
    assert same.drop == (0, 0, 0)


def test_a_calibration_that_says_nothing_is_refused() -> None:
    for calibration, match in ((None, "no calibration"), (untrusted(), "do not agree with people")):
        with pytest.raises(ValueError, match=match):
            dialogue_quality(["retain"], [1.0], [1.0], calibration, TOLD)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=match):
            DialogueQualityCallback(EchoJudge(), calibration)


def test_ratings_of_a_judge_that_misses_controls_are_not_valid() -> None:
    missed = controls_of([3.0, 4.0], {"empty": [1.0, 2.0], "repeated": [3.0, 4.0]})
    found = dialogue_quality(["retain"], [3.0], [3.0], trusted(), missed)
    assert not found.valid
    assert found.metrics()["valid"] == 0
    rude = controls_of([3.0, 4.0], {"empty": [1.0, 2.0]}, ([1.0, 1.0], [2.0, 2.0]))
    found = dialogue_quality(["retain", "forget"], [3.0, 3.0], [3.0, 3.0], trusted(), rude)
    assert (found.valid_for("retain"), found.valid_for("forget")) == (True, False)


def test_a_model_is_not_its_own_judge(tiny_lm: Path) -> None:
    judge, other = DialogueJudge(str(tiny_lm)), LitCausalLM(tiny_lm)
    for module in (judge.lm, other, LitCausalLM(tiny_lm, dtype="bfloat16")):
        with pytest.raises(ValueError, match="judge is the judged model itself"):
            check_other_model(judge, module)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    check_other_model(judge, other)
    check_other_model(EchoJudge(), other)


def run(folder: Path, tiny_lm: Path, callback: DialogueQualityCallback, rows: list[Any], **options: Any) -> Any:
    data = LanguageDataModule(forget=rows[:4], retain=rows[4:], batch_size=4)
    fit = trainer(GradientAscent(), callback, logger=CSVLogger(folder), max_epochs=2, **options)
    fit.fit(LitCausalLM(tiny_lm, lr=1e-3), data)
    return fit


@pytest.fixture
def rows(forget_rows: list[Any], retain_rows: list[Any]) -> list[Any]:
    return forget_rows + retain_rows


class Collapses:
    """Answers as before for so many calls, and then as a model that has collapsed."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, module: Any, asked: list[Any]) -> list[str]:
        self.left -= 1
        return echo(asked) if self.left >= 0 else collapsed(asked)


def test_a_collapse_is_caught(tmp_path: Path, tiny_lm: Path, rows: list[Any]) -> None:
    callback = DialogueQualityCallback(EchoJudge(), trusted(), generate=Collapses(2))
    fit = run(tmp_path, tiny_lm, callback, rows)
    first, *_, last = [evaluation.metrics for evaluation in callback.history]
    assert first["valid"] == last["valid"] == 1
    assert min(first[f"auc_{kind}"] for kind in ("shuffled", "repeated", "empty", "swapped")) >= 0.8
    assert first["drop"] == first["retain_difference"] == 0
    assert last["drop_low"] > 1
    assert last["retain_difference_high"] < -1
    assert last["neutral"] < 2
    assert fit.callback_metrics["dq/drop"] == pytest.approx(last["drop"])
    table = next(tmp_path.rglob("*conversations.csv"))
    lines = list(csv.reader(table.open(encoding="utf-8")))
    assert len(lines) == 1 + 24 + 4 + 2
    assert "France" not in table.read_text(encoding="utf-8")  # of a row to forget
    assert "Japan" in table.read_text(encoding="utf-8")
    state = callback.public_state(callback.state_dict())[0]
    assert "France" not in str(state)


def test_a_calibration_of_another_judge_is_refused_before_training(
    tmp_path: Path, tiny_lm: Path, rows: list[Any]
) -> None:
    scores = torch.linspace(1, 5, 40)
    calibration = Calibration().fit(scores, scores, judge=EchoJudge())
    callback = DialogueQualityCallback(Contrary(), calibration, generate=Collapses(9))
    with pytest.raises(ValueError, match="calibration belongs to another judge"):
        run(tmp_path, tiny_lm, callback, rows)
    assert not callback.history


def test_a_resumed_run_compares_with_the_model_before(tmp_path: Path, tiny_lm: Path, rows: list[Any]) -> None:
    callback = DialogueQualityCallback(EchoJudge(), trusted(), generate=Collapses(2))
    fit = run(tmp_path, tiny_lm, callback, rows)
    path = tmp_path / "half.ckpt"
    save_resumable(fit, path)
    again = DialogueQualityCallback(EchoJudge(), trusted(), generate=Collapses(0))
    data = LanguageDataModule(forget=rows[:4], retain=rows[4:], batch_size=4)
    resumed = trainer(GradientAscent(), again, max_epochs=3)
    resumed.fit(LitCausalLM(tiny_lm, lr=1e-3), data, ckpt_path=path)
    assert len(again.history) == len(callback.history) + 1
    assert again.history[-1].metrics == callback.history[-1].metrics


def test_the_judge_may_be_a_model(tmp_path: Path, tiny_lm: Path, rows: list[Any]) -> None:
    scale = RatingTask("short", ("1", "2"), (1.0, 2.0), ("bad", "good"), "it", "Rate.")  # for a short context
    judge = DialogueJudge(str(tiny_lm), scale)
    with torch.no_grad():
        next(judge.parameters()).mul_(1.5)
    before = [parameter.clone() for parameter in judge.parameters()]
    callback = DialogueQualityCallback(judge, trusted(), neutral_seeds()[:3], every_n_epochs=0, max_new_tokens=3)
    with pytest.warns(UserWarning, match="are invalid: the judge does not tell"):
        run(tmp_path, tiny_lm, callback, rows)
    assert set(callback.history[0].metrics) >= {"neutral", "neutral_raw", "drop", "valid", "auc_swapped"}
    assert all(torch.equal(a, b) for a, b in zip(before, judge.parameters(), strict=True))
    own = DialogueQualityCallback(DialogueJudge(str(tiny_lm)), trusted(), neutral_seeds()[:1])
    with pytest.raises(ValueError, match="judge is the judged model itself"):
        run(tmp_path, tiny_lm, own, rows)
