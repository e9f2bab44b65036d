"""Warnings of runs that did not forget, or that lost the rest, and none in a run that is as it should be."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from lightning_unlearn import NPO, GradDiff, classifier_nll, training_step_loss
from lightning_unlearn.core.trend import Trend
from tests.helpers import trainer
from tests.user_module import LitNet, loaders, pairs


class Sgd(LitNet):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)


def fit(method: Any, rate: float, data: Any = None, epochs: int = 3) -> list[str]:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(method, max_epochs=epochs).fit(Sgd(rate), data or loaders())
    return [str(w.message) for w in caught if "the loss on the rows" in str(w.message)]


@pytest.mark.parametrize("score", [classifier_nll, training_step_loss])
def test_a_forget_loss_that_falls(score: Any) -> None:
    """The retain term teaches the same rows, with ten times the weight."""
    rows = {role: pairs(16, seed=1) for role in ("forget", "retain")}
    (said,) = fit(GradDiff(retain_weight=10.0, score=score), 0.1, rows)
    assert "GradDiff: the loss on the rows to forget has fallen" in said


def test_a_forget_loss_that_does_not_move() -> None:
    (said,) = fit(NPO(score=classifier_nll), 1e-6)
    assert "has hardly moved" in said


def test_a_retain_loss_that_rises() -> None:
    rows = {role: pairs(16, seed=1) for role in ("forget", "retain")}
    (said,) = fit(GradDiff(retain_weight=0.01, score=classifier_nll), 0.2, rows)
    assert "the loss on the rows to keep has risen" in said


def test_no_warning_where_all_is_well() -> None:
    assert fit(NPO(score=classifier_nll), 0.05) == []
    assert fit(GradDiff(score=classifier_nll), 0.02) == []
    assert fit(NPO(score=classifier_nll), 1e-6, epochs=1) == []  # nothing to compare with


def test_means_of_the_first_and_the_last_epoch() -> None:
    trend = Trend(("a",))
    for epoch, value in ((0, 1.0), (0, 3.0), (1, 9.0), (2, 4.0), (2, 6.0)):
        trend.add(epoch, {"a": torch.tensor(value), "b": torch.tensor(0.0)})
    assert trend.means() == [{"a": 2.0}, {"a": 5.0}]
