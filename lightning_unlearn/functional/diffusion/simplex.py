"""Projection onto the probability simplex, and sampling from points on it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["project_simplex", "sample_simplex"]


def project_simplex(x: Tensor) -> Tensor:
    r"""The nearest point of the probability simplex: $\arg\min_u \|u - x\|^2$ with $u \ge 0$ and $\sum_i u_i = 1$.

    It is $u_i = \max(x_i - \tau, 0)$ with $\tau = \big(\sum_{i \le \rho} x_{(i)} - 1\big) / \rho$, where $x_{(1)} \ge
    x_{(2)} \ge \dots$ are the sorted entries and $\rho$ is the largest number for which $x_{(\rho)} > \tau$. This is
    exact; the released code of UnlearnDiffAtk finds $\tau$ by bisection to $10^{-5}$.

    Args:
        x: Points along the last dimension, shape ``(..., V)``.

    Returns:
        Shape and type of ``x``.

    Raises:
        ValueError: If the last dimension is empty.

    Example:
        >>> project_simplex(torch.tensor([[2.0, 0.0, 0.0], [0.6, 0.5, -0.2]]))
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5500, 0.4500, 0.0000]])

    References:
        Duchi et al., *Efficient Projections onto the l1-Ball for Learning in High Dimensions*, ICML 2008, fig. 1.
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"project_simplex wants at least one entry in the last dimension, but got {tuple(x.shape)}.")
    # Sum over the largest entries only, minus their maximum, so that large inputs lose no digits.
    shifted = (x - x.amax(-1, keepdim=True)).double()
    ordered = shifted.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    tau = (ordered.cumsum(-1) - 1) / count
    rho = (ordered > tau).sum(-1, keepdim=True)
    return (shifted - tau.gather(-1, rho - 1)).clamp(min=0).to(x.dtype)


def sample_simplex(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw from categorical distributions by inversion of their cumulative sums.

    An entry of weight 0 is never drawn.

    Args:
        weights: Distributions along the last dimension, shape ``(..., V)``.
        uniform: Random numbers in [0, 1), shape ``(...)``.

    Returns:
        The drawn entries, shape ``(...)``, int64.

    Example:
        >>> sample_simplex(torch.tensor([[0.5, 0.0, 0.5]] * 2), torch.tensor([0.4, 0.6]))
        tensor([0, 2])
    """
    cumulative = weights.double().cumsum(-1)
    threshold = uniform.double().to(weights.device) * cumulative[..., -1]
    drawn = torch.searchsorted(cumulative, threshold[..., None], right=True)[..., 0]
    return drawn.clamp(max=weights.shape[-1] - 1)
