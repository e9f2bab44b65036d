"""Correlations of paired numbers, for many sets of pairs at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_ranks", "kendall", "pearson", "spearman"]


def average_ranks(values: Tensor) -> Tensor:
    """Ranks starting at 1, where equal values share the mean of their ranks.

    Args:
        values: Shape ``(..., N)``.

    Returns:
        The same shape, fp64.

    Example:
        >>> average_ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    ordered = values.sort(dim=-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above + 1).double() / 2


def pearson(x: Tensor, y: Tensor) -> Tensor:
    r"""Pearson correlation.

    $$r = \frac{\sum_i (x_i - \bar x)(y_i - \bar y)}{\sqrt{\sum_i (x_i - \bar x)^2 \sum_i (y_i - \bar y)^2}}$$

    Args:
        x: Shape ``(..., N)``.
        y: The same shape.

    Returns:
        Shape ``(...)``, fp64; NaN if one side is constant.

    Example:
        >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])).item()
        0.981...
    """
    x, y = (side.double() for side in (x, y))
    # The mean of equal numbers can differ from them by rounding, which would give a correlation of noise.
    constant = (x == x[..., :1]).all(-1) | (y == y[..., :1]).all(-1)
    x, y = (side - side.mean(-1, keepdim=True) for side in (x, y))
    r = (x * y).sum(-1) / ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()
    return r.clamp(-1, 1).masked_fill(constant, torch.nan)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    r"""Spearman rank correlation: the Pearson correlation of average ranks.

    $1 - 6 \sum_i d_i^2 / (N (N^2 - 1))$ is equal to it only if no two numbers are equal.

    Args:
        x: Shape ``(..., N)``.
        y: The same shape.

    Returns:
        Shape ``(...)``, fp64; NaN if one side is constant.

    Example:
        >>> x, y = torch.tensor([1.0, 2, 2, 4, 5]), torch.tensor([1.0, 3, 2, 5, 4])
        >>> round(spearman(x, y).item(), 6)
        0.872082
    """
    return pearson(average_ranks(x), average_ranks(y))


def kendall(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Kendall's $\tau_b$ of pairs, each of which can count several times.

    $$\tau_b = \frac{\sum_{ij} w_i w_j s^x_{ij} s^y_{ij}}{\sqrt{\sum_{ij} w_i w_j |s^x_{ij}|
      \sum_{ij} w_i w_j |s^y_{ij}|}}, \qquad s^x_{ij} = \mathrm{sign}(x_i - x_j)$$

    Args:
        x: Shape ``(N,)``.
        y: Shape ``(N,)``.
        weights: Multiplicity of each pair, shape ``(D, N)``, for example in ``D`` bootstrap samples; by default each
            counts once.

    Returns:
        Shape ``(D,)``, or a scalar without weights, fp64; NaN if one side is constant.

    Example:
        >>> kendall(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])).item()
        0.333...
    """
    w = torch.ones(1, len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    sums = torch.zeros(3, len(w), dtype=torch.float64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(1024):  # all at once would need N x N numbers
        sx, sy = ((side[rows, None] - side).sign().double() for side in (x, y))
        for number, signs in enumerate((sx * sy, sx.abs(), sy.abs())):
            sums[number] += ((w[:, rows] @ signs) * w).sum(-1)
    tau = sums[0] / (sums[1] * sums[2]).sqrt()
    return tau[0] if weights is None else tau
