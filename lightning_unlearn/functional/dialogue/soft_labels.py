"""Soft targets from the ratings of several annotators, and losses of label probabilities against them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.functional.dialogue.expected_score import expected_score

__all__ = ["expected_score_loss", "soft_label_nll", "soft_labels"]


def soft_labels(ratings: Tensor, values: Tensor) -> Tensor:
    r"""Fraction of the annotators for each label.

    A rating between two labels is divided between both, so that :math:`\sum_i q_i v_i` is the mean rating:
    :math:`q_i = \frac1A \sum_a \max\big(0, 1 - |r_a - v_i| / |v_{i \pm 1} - v_i|\big)` with the neighbour on the side
    of :math:`r_a`. Ratings outside the scale count as its nearest end.

    Args:
        ratings: One rating per annotator, shape ``(N, A)``; NaN if a row has fewer annotators.
        values: The number that each label stands for, increasing, shape ``(L,)``.

    Returns:
        Shape ``(N, L)``, fp32; each row sums to 1.

    Raises:
        ValueError: If a row has no rating.

    Example:
        >>> nan = float("nan")
        >>> soft_labels(torch.tensor([[4.0, 4.0, 3.0, 3.0], [2.5, nan, nan, nan]]), torch.arange(1.0, 6.0))
        tensor([[0.0000, 0.0000, 0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000, 0.0000, 0.0000]])
    """
    values, rated = values.float(), ~ratings.isnan()
    if not rated.any(-1).all():
        raise ValueError("Each row needs a rating, but one has none. Leave dialogues without ratings out of training.")
    ratings = ratings.float().nan_to_num(float(values[0])).clamp(values[0], values[-1])
    upper = torch.searchsorted(values, ratings.contiguous()).clamp(min=1)
    low, high = values[upper - 1], values[upper]
    share = (ratings - low) / (high - low)
    weights = torch.zeros(*ratings.shape, len(values), device=ratings.device)
    weights.scatter_(-1, (upper - 1)[..., None], (1 - share)[..., None])
    weights.scatter_(-1, upper[..., None], share[..., None])
    weights = weights * rated[..., None]
    return weights.sum(-2) / rated.sum(-1, keepdim=True)


def soft_label_nll(log_probs: Tensor, targets: Tensor) -> Tensor:
    r"""Cross-entropy of label probabilities against a distribution over labels, :math:`-\sum_i q_i \ell_i`.

    Args:
        log_probs: Log-probability :math:`\ell_i` of each label, shape ``(N, L)``; if normalized over the vocabulary,
            the judge also learns to write a label.
        targets: The distributions :math:`q`, shape ``(N, L)``.

    Returns:
        Shape ``(N,)``, fp32, in nats.

    Example:
        >>> log_probs = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> round(soft_label_nll(log_probs, torch.tensor([[0.5, 0.5, 0.0]])).item(), 4)
        1.0397
    """
    # A label that nobody chose does not contribute to the loss, even if its probability is 0.
    return -torch.where(targets > 0, targets * log_probs.float(), 0.0).sum(-1)


def expected_score_loss(log_probs: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    r"""Squared error of the expected score, :math:`\big(\sum_i p_i v_i - \bar r\big)^2` with :math:`p` over the labels.

    Args:
        log_probs: Log-probabilities or logits of the labels, shape ``(N, L)``.
        values: The number that each label stands for, shape ``(L,)``.
        mean: Mean rating :math:`\bar r`, shape ``(N,)``.

    Returns:
        Shape ``(N,)``, fp32.

    Example:
        >>> expected_score_loss(torch.zeros(1, 5), torch.arange(1.0, 6.0), torch.tensor([3.5]))
        tensor([0.2500])
    """
    return (expected_score(log_probs, values) - mean.float()) ** 2
