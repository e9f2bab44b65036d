"""Receiver operating characteristic (ROC) of two samples: area with ties, its standard error, and single points."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["auc", "delong", "tpr_at_fpr"]


def auc(positive: Tensor, negative: Tensor) -> Tensor:
    r"""Area under the ROC curve, :math:`P(s_+ > s_-) + \tfrac12 P(s_+ = s_-)`, in fp64.

    Args:
        positive: Scores :math:`s_+`, shape ``(N,)``, any range; they are only compared.
        negative: Scores :math:`s_-`, shape ``(M,)``.

    Returns:
        A scalar in [0, 1], fp64; 0.5 is chance.

    Example:
        >>> auc(torch.tensor([1.0, 0.8, 1.5]), torch.tensor([0.2, 0.5, 0.9]))
        tensor(0.8889, dtype=torch.float64)
    """
    return _placements(positive, negative).mean()


def delong(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    r"""Area under the ROC curve and its standard error, :math:`\sqrt{S_{10}/N + S_{01}/M}` (DeLong et al., 1988).

    :math:`S_{10}` is the variance over positives of the share of negatives below each, and :math:`S_{01}` is the
    variance over negatives of the share of positives above each.

    Args:
        positive: Scores, shape ``(N,)``, ``N >= 2``.
        negative: Scores, shape ``(M,)``, ``M >= 2``.

    Returns:
        Two scalars, fp64. The error is 0 if all pairs agree, and is then not informative.

    References:
        DeLong, DeLong and Clarke-Pearson, *Comparing the Areas under Two or More Correlated ROC Curves*,
        Biometrics 44(3), 1988.
    """
    above, below = _placements(positive, negative), 1 - _placements(negative, positive)
    return above.mean(), (above.var() / len(above) + below.var() / len(below)).sqrt()


def tpr_at_fpr(positive: Tensor, negative: Tensor, fpr: float) -> Tensor:
    r"""Share of positives above the lowest threshold that at most a share ``fpr`` of the negatives exceeds.

    Args:
        positive: Scores, shape ``(N,)``.
        negative: Scores, shape ``(M,)``; with fewer than ``1 / fpr`` of them, none may exceed the threshold.
        fpr: False-positive rate, in [0, 1).

    Returns:
        A scalar in [0, 1], fp64.

    Example:
        >>> tpr_at_fpr(torch.tensor([0.2, 0.7, 0.9]), torch.tensor([0.1, 0.3, 0.8]), fpr=0.34)
        tensor(0.6667, dtype=torch.float64)
    """
    allowed = int(fpr * len(negative) + 1e-9)  # 0.29 * 100 is slightly less than 29
    return (positive > negative.sort(descending=True).values[allowed]).double().mean()


def _placements(scores: Tensor, others: Tensor) -> Tensor:
    """For each score, the share of the others below it; equal scores count half."""
    scores, others = scores.double(), others.double().sort().values
    below = torch.searchsorted(others, scores)
    return (below + torch.searchsorted(others, scores, right=True)).double() / (2 * len(others))
