"""Scores of the labels' probabilities: the numbers of a worked example, and what no logits can break."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional import argmax_score, expected_score, label_log_probs, label_weights, ratio_score

LOG_PROBS = torch.tensor([-5.0, -2.0, -1.0, -1.5, -4.0])
VALUES = torch.arange(1.0, 6.0)


def test_five_log_probabilities_have_the_weights_and_scores_worked_out_by_hand() -> None:
    weights = label_weights(LOG_PROBS)
    torch.testing.assert_close(weights, torch.tensor([0.0090, 0.1801, 0.4896, 0.2970, 0.0244]), atol=5e-5, rtol=0)
    assert expected_score(LOG_PROBS, VALUES).item() == pytest.approx(3.1477, abs=5e-5)
    assert argmax_score(LOG_PROBS, VALUES).item() == 3
    top = label_weights(LOG_PROBS, 3)
    torch.testing.assert_close(top, torch.tensor([0, 0.1863, 0.5065, 0.3072, 0]), atol=5e-5, rtol=0)
    assert expected_score(LOG_PROBS, VALUES, 3).item() == pytest.approx(3.1209, abs=5e-5)


def test_log_probabilities_are_not_normalised_as_they_are() -> None:
    # Divided by their sum they would be (.2222, .3333, .4444) for the labels 3, 4, 2: the least likely leads.
    literal = LOG_PROBS[[2, 3, 1]] / LOG_PROBS[[2, 3, 1]].sum()
    assert (literal * VALUES[[2, 3, 1]]).sum().item() == pytest.approx(2.8889, abs=5e-5)
    assert label_weights(LOG_PROBS, 3).argmax() == 2
    assert expected_score(LOG_PROBS, VALUES, 3).item() != pytest.approx(2.8889, abs=0.1)


def test_what_holds_of_any_logits() -> None:
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 20
    scores = expected_score(logits, VALUES)
    assert scores.min() >= 1
    assert scores.max() <= 5
    torch.testing.assert_close(expected_score(logits + 7, VALUES), scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(expected_score(logits, VALUES, 5), scores)
    assert torch.equal(expected_score(logits, VALUES, 1), argmax_score(logits, VALUES))
    assert expected_score(torch.zeros(5), VALUES).item() == 3
    torch.testing.assert_close(ratio_score(logits[:, :2]), (logits[:, 1] - logits[:, 0]).sigmoid())


def test_labels_of_several_tokens_follow_the_chain_rule_and_one_that_begins_another_leaves_it_out() -> None:
    log = torch.tensor([0.5, 0.5, 0.25]).log()
    step = {(): {1: log[:1], 2: log[1:2]}, (1,): {0: log[2:]}}
    found = label_log_probs([(1,), (1, 0), (2,)], step).exp()
    torch.testing.assert_close(found, torch.tensor([[0.375, 0.125, 0.5]]))


def test_more_labels_than_there_are_and_a_ratio_of_five_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[1, 5\]"):
        label_weights(LOG_PROBS, 6)
    with pytest.raises(ValueError, match="two labels"):
        ratio_score(LOG_PROBS)
