"""Conjugate gradient solver for matrices given by matrix-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["conjugate_gradient"]


@torch.no_grad()
def conjugate_gradient(
    product: Callable[[list[Tensor]], Sequence[Tensor]],
    vector: Sequence[Tensor],
    *,
    damping: float = 0.0,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> list[Tensor]:
    r"""Solve :math:`(H + \lambda I)\, x = v` by conjugate gradients, for a symmetric :math:`H`.

    Args:
        product: Maps a vector to :math:`H` times that vector, as a Hessian-vector product does. Vectors are lists of
            tensors.
        vector: The right-hand side :math:`v`.
        damping: :math:`\lambda \ge 0`. The Hessian of a network has negative eigenvalues; the damping has to outweigh
            them.
        iterations: Maximum number of products.
        tolerance: Stop when the norm of the residual is below this fraction of the norm of :math:`v`.

    Returns:
        The solution :math:`x`, a list of tensors shaped as ``vector``.

    Raises:
        ArithmeticError: If :math:`H + \lambda I` turns out not to be positive definite.

    Example:
        >>> import torch
        >>> diagonal = torch.tensor([1.0, 4.0])
        >>> conjugate_gradient(lambda x: [diagonal * x[0]], [torch.tensor([2.0, 2.0])])
        [tensor([2.0000, 0.5000])]

    References:
        Hestenes and Stiefel, *Methods of Conjugate Gradients for Solving Linear Systems*, 1952.
    """
    solution = [torch.zeros_like(v) for v in vector]
    residual = [v.clone() for v in vector]
    direction = [v.clone() for v in vector]
    squared = _dot(residual, residual)
    goal = tolerance**2 * squared
    for _ in range(iterations):
        if squared <= goal:
            break
        image = [h + damping * d for h, d in zip(product(direction), direction, strict=True)]
        curvature = _dot(direction, image)
        if not curvature > 0:
            raise ArithmeticError(
                f"The damped Hessian is not positive definite: d'(H + {damping}I)d = {float(curvature):.3g} along a "
                "direction of the search. Raise damping, or use the Fisher matrix (solver='woodfisher')."
            )
        step = (squared / curvature).item()
        for x, r, d, h in zip(solution, residual, direction, image, strict=True):
            x.add_(d, alpha=step)
            r.sub_(h, alpha=step)
        squared, before = _dot(residual, residual), squared
        ratio = (squared / before).item()
        direction = [r + ratio * d for r, d in zip(residual, direction, strict=True)]
    return solution


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()
