"""Lipschitz constants of denoisers, and resulting stability bounds of unrolled networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_unlearn.functional.random import keyed_generator

__all__ = ["estimate_lipschitz", "smoothed_lipschitz_bound", "unrolled_stability_bound"]


def smoothed_lipschitz_bound(bound: float, sigma: float) -> float:
    r"""Lipschitz constant of the mean of a bounded function over Gaussian noise.

    If $\lVert D\rVert_2 \le B$ everywhere, then $x \mapsto \mathbb{E}\,D(x + \eta)$ with
    $\eta \sim \mathcal{N}(0, \sigma^2 I)$ has

    $$L \le \sqrt{\frac{2}{\pi}}\, \frac{B}{\sigma},$$

    whatever the Lipschitz constant of $D$. A step of height $B$ in one dimension meets it with equality.

    Args:
        bound: $B \ge 0$.
        sigma: $\sigma > 0$, on the real and on the imaginary part each.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> round(smoothed_lipschitz_bound(1.0, 0.1), 4)
        7.9788
    """
    if not sigma > 0 or not bound >= 0:
        raise ValueError(f"sigma must be greater than 0 and bound at least 0, but got {sigma} and {bound}.")
    return math.sqrt(2 / math.pi) * bound / sigma


def unrolled_stability_bound(lipschitz: float, steps: int, weight: float = 1.0) -> float:
    r"""Bound on the change of a MoDL reconstruction per unit of change of its measurements.

    With a denoiser of Lipschitz constant $L$, $a = 1/\lambda \ge \lVert(A^H A + \lambda I)^{-1}\rVert$,
    $q = a\lambda L = L$ and $\lVert A\rVert \le 1$,

    $$\frac{\lVert x_n(y) - x_n(y + \delta)\rVert}{\lVert\delta\rVert} \le a\,\frac{1 - q^n}{1 - q} + q^n.$$

    Args:
        lipschitz: $L \ge 0$, such as `smoothed_lipschitz_bound`.
        steps: $n$.
        weight: $\lambda > 0$.

    Raises:
        ValueError: If a number is out of range.

    Example:
        Without a denoiser, one step divides by $\lambda$.

        >>> unrolled_stability_bound(0.0, steps=1, weight=2.0), unrolled_stability_bound(1.0, steps=8)
        (0.5, 9.0)
    """
    if not weight > 0 or not lipschitz >= 0 or steps < 0:
        raise ValueError(
            f"weight must be greater than 0, lipschitz and steps at least 0, but got {weight}, {lipschitz}, {steps}."
        )
    return sum(lipschitz**step for step in range(steps)) / weight + lipschitz**steps


def estimate_lipschitz(function: Callable[[Tensor], Tensor], at: Tensor, iterations: int = 20, seed: int = 0) -> Tensor:
    r"""The largest singular value of a function's Jacobian at a point, by power iteration.

    $$v \leftarrow J^\top J v / \lVert J^\top J v\rVert, \qquad \lVert J v\rVert \to \sigma_{max}(J)$$

    Each iteration needs one product of the Jacobian with a vector and one with its transpose. The value rises towards
    $\sigma_{max}$, which is at most the Lipschitz constant: it is a lower bound, and that of `smoothed_lipschitz_bound`
    an upper one. Complex tensors are treated as pairs of real ones.

    Args:
        function: Maps (B, ...) to (B, ...), row by row, without random numbers or in-place changes. Modules must be in
            evaluation mode.
        at: The point. Shape (B, ...), real or complex.
        iterations: Number of iterations, at least 1.
        seed: Seed of the initial vector.

    Returns:
        One value per row. Shape (B,).

    Raises:
        ValueError: If ``iterations`` is less than 1.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, -3.0]))
        >>> estimate_lipschitz(lambda x: x @ matrix, torch.zeros(1, 2))
        tensor([3.])
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, but got {iterations}.")
    point = torch.view_as_real(at) if at.is_complex() else at

    def real(x: Tensor) -> Tensor:
        y = function(torch.view_as_complex(x) if at.is_complex() else x)
        return torch.view_as_real(y) if y.is_complex() else y

    transposed = torch.func.vjp(real, point)[1]
    start = torch.randn(point.shape, generator=keyed_generator(seed), dtype=point.dtype)
    direction, value = _unit(start.to(point.device)), point.new_zeros(len(point))
    for _ in range(iterations):
        image = torch.func.jvp(real, (point,), (direction,))[1]
        value = image.flatten(1).norm(dim=1)
        direction = _unit(transposed(image)[0])
    return value.detach()


def _unit(rows: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows.flatten(1), dim=1).view(-1, *(1,) * (rows.ndim - 1))
    return rows / norm.clamp_min(torch.finfo(rows.dtype).tiny)
