from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional.dialogue.soft_labels import expected_score_loss, soft_label_nll, soft_labels

SCALE = torch.arange(1.0, 6.0)
nan = float("nan")


def test_soft_labels_are_the_shares_of_the_annotators() -> None:
    ratings = torch.tensor([[4.0, 3.0, 4.0, nan], [1.0, 5.0, 5.0, 5.0]])
    wanted = [[0, 0, 1 / 3, 2 / 3, 0], [0.25, 0, 0, 0, 0.75]]
    torch.testing.assert_close(soft_labels(ratings, SCALE), torch.tensor(wanted))


def test_the_mean_of_soft_labels_is_the_mean_rating_on_any_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    for values in (SCALE, torch.tensor([0.0, 1.0]), torch.tensor([-2.0, 0.5, 7.0])):
        ratings = values[0] + (values[-1] - values[0]) * torch.rand(50, 4, generator=draw)
        shares = soft_labels(ratings, values)
        torch.testing.assert_close(shares.sum(1), torch.ones(50))
        torch.testing.assert_close(shares @ values, ratings.mean(1))


def test_ratings_off_the_scale_count_for_its_end_and_a_row_without_any_is_refused() -> None:
    assert soft_labels(torch.tensor([[0.0, 9.0]]), SCALE).tolist() == [[0.5, 0, 0, 0, 0.5]]
    with pytest.raises(ValueError, match="Leave dialogues without ratings out"):
        soft_labels(torch.tensor([[3.0], [nan]]), SCALE)


def test_cross_entropy_is_the_mean_of_the_nll_over_annotators_and_least_at_their_shares() -> None:
    log_probs = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    targets = soft_labels(torch.tensor([[3.0, 4.0, 4.0]]), SCALE)
    by_hand = -(log_probs[0, 2] + 2 * log_probs[0, 3]) / 3
    torch.testing.assert_close(soft_label_nll(log_probs, targets), by_hand[None])
    assert soft_label_nll(targets.log(), targets) < by_hand


def test_an_impossible_label_that_nobody_gives_has_no_part_in_the_loss() -> None:
    log_probs = torch.tensor([[-torch.inf, 0.0]], requires_grad=True)
    soft_label_nll(log_probs, torch.tensor([[0.0, 1.0]])).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.0, -1.0]]


def test_expected_score_loss() -> None:
    log_probs = torch.tensor([[-5.0, -2.0, -1.0, -1.5, -4.0]])
    loss = expected_score_loss(log_probs, SCALE, torch.tensor([3.5]))
    torch.testing.assert_close(loss, torch.tensor([(3.1477 - 3.5) ** 2]), atol=1e-4, rtol=0)
