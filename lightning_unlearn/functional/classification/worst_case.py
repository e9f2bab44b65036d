"""Worst-case forget sets: the rows that are hardest to forget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["capped_simplex_projection", "worst_case_indices"]


def capped_simplex_projection(weights: Tensor, total: float) -> Tensor:
    r"""Euclidean projection onto the vectors with entries in [0, 1] and a given sum.

    .. math:: \mathrm{clip}(w - \mu, 0, 1) \quad \text{with } \mu \text{ such that it sums to } m

    The sum decreases in :math:`\mu`, which is found by bisection in fp64, exact up to rounding.

    Args:
        weights: :math:`w`, shape ``(N,)``.
        total: The sum :math:`m`, from 0 to ``N``.

    Returns:
        Shape ``(N,)``, in the type of ``weights``.

    Raises:
        ValueError: If there is no such vector.

    Example:
        >>> capped_simplex_projection(torch.tensor([2.0, 0.5, 0.4, -1.0]), 2.0)
        tensor([1.0000, 0.5500, 0.4500, 0.0000])

    References:
        Fan et al., *Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning*,
        arXiv:2403.07362.
    """
    if not 0 <= total <= len(weights):
        raise ValueError(f"total must be from 0 to the {len(weights)} weights, but got {total}.")
    if not weights.isfinite().all():
        raise ValueError("weights must be finite.")
    w = weights.double()
    low, high = w.min() - 1, w.max()  # projections to all ones and to all zeros
    for _ in range(100):
        middle = (low + high) / 2
        if (w - middle).clamp(0, 1).sum() > total:
            low = middle
        else:
            high = middle
    return (w - high).clamp(0, 1).to(weights.dtype)


def worst_case_indices(
    unlearn: Callable[[Tensor], Tensor],
    rows: int,
    count: int,
    *,
    steps: int = 10,
    lr: float = 0.01,
    gamma: float = 0.0,
    easiest: bool = False,
) -> Tensor:
    r"""The rows that are hardest to forget together: those with the lowest loss after unlearning.

    .. math:: \min_w \sum_i w_i\, \ell_i(\theta_u(w)) + \gamma \lVert w \rVert^2
        \quad \text{s.t. } 0 \le w \le 1,\ \sum_i w_i = m

    The lower level is ``unlearn``: some steps of any method, with the weight of each row in its forget loss. The upper
    level is projected gradient descent in :math:`w` at fixed :math:`\theta_u`. The forget set consists of the rows with
    the :math:`m` largest weights; among equal weights, the first rows.

    Args:
        unlearn: ``weights (N,) -> losses (N,)`` of all rows after unlearning; each call starts from the original
            model.
        rows: Number of candidates :math:`N`.
        count: Size of the forget set :math:`m`.
        steps: Number of alternations between the two levels.
        lr: Step size of the upper level.
        gamma: Strength of the pull towards equal weights :math:`\gamma`.
        easiest: Whether to find the rows with the highest loss instead.

    Returns:
        Row numbers, ascending, shape ``(m,)``, int64.

    Raises:
        ValueError: If a number is out of range, or ``unlearn`` does not return a finite loss for each row.

    Example:
        >>> loss = torch.tensor([3.0, 0.1, 2.0, 0.2])
        >>> worst_case_indices(lambda weights: loss, rows=4, count=2)
        tensor([1, 3])
        >>> worst_case_indices(lambda weights: loss, rows=4, count=2, easiest=True)
        tensor([0, 2])

    References:
        Fan et al., *Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning*,
        arXiv:2403.07362.
    """
    if not 0 < count < rows:
        raise ValueError(f"count must be from 1 to one less than the {rows} rows, but got {count}.")
    if steps < 1 or not lr > 0 or not gamma >= 0:
        raise ValueError(
            f"steps must be at least 1, lr positive and gamma at least 0, but got steps={steps}, lr={lr}, "
            f"gamma={gamma}."
        )
    weights = torch.full((rows,), count / rows, dtype=torch.float64)
    sign = -1.0 if easiest else 1.0
    for _ in range(steps):
        losses = unlearn(weights.float()).detach().to(weights)
        if losses.shape != weights.shape or not losses.isfinite().all():
            raise ValueError(
                f"unlearn must return a finite loss for each of the {rows} rows, but got shape {tuple(losses.shape)}"
                f"{' with values that are not finite' if losses.shape == weights.shape else ''}."
            )
        weights = capped_simplex_projection(weights - lr * (sign * losses + 2 * gamma * weights), count)
    return weights.argsort(descending=True, stable=True)[:count].sort().values
