"""Data consistency by conjugate gradients, with a separate solve for each image of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["data_consistency", "solve_normal_equations"]

Normal = Callable[[Tensor], Tensor]


def data_consistency(
    normal: Normal,
    adjoint_measurement: Tensor,
    denoised: Tensor,
    weight: float | Tensor = 1.0,
    tolerance: float = 1e-6,
    iterations: int = 30,
) -> Tensor:
    r"""The image that fits the measurements and stays close to the denoised image.

    $$\arg\min_x \lVert A x - y\rVert^2 + \lambda\lVert x - d\rVert^2 = (A^H A + \lambda I)^{-1}(z + \lambda d)$$

    Gradients are exact at the solution and cost one more solve, whatever the number of iterations: with
    $Q = A^H A + \lambda I$ and the gradient $g$ of the solution, that of $z$ is $Q^{-1} g$, and that of $d$ is
    $\lambda Q^{-1} g$. The gradient of $z$ transmits an attack on the measurements; implementations that omit it appear
    more robust than they are.

    Args:
        normal: $A^H A$, which maps images (B, H, W) to images, row by row. It is a constant: no gradient reaches it.
        adjoint_measurement: $z = A^H y$. Shape (B, H, W), complex.
        denoised: $d$, the starting point of the iterations. Shape (B, H, W), complex.
        weight: $\lambda > 0$: a number, or a tensor of shape () or (B,), which gets a gradient if it requires one.
        tolerance: An image is done when the norm of its residual is at most this fraction of that of $z + \lambda d$.
        iterations: Maximum number of iterations. Since $0 \le A^H A \le I$, an error falls by
            $(\sqrt\kappa - 1)/(\sqrt\kappa + 1)$ in each, where $\kappa = 1 + 1/\lambda$: 9 reach 1e-6 for
            $\lambda = 1$, 30 for $\lambda = 0.06$.

    Returns:
        The image $x$. Shape (B, H, W), complex.

    Raises:
        ValueError: If ``normal`` itself requires a gradient, as with learned maps.

    Example:
        If everything is measured, the image is halfway between the measured and the denoised one.

        >>> import torch
        >>> z, d = torch.full((1, 2, 2), 1 + 1j), torch.zeros(1, 2, 2, dtype=torch.complex64)
        >>> data_consistency(lambda x: x, z, d)[0, 0, 0]
        tensor(0.5000+0.5000j)

    References:
        Aggarwal et al., *MoDL: Model-Based Deep Learning Architecture for Inverse Problems*, arXiv:1712.02862, Eq. 9.
        Li et al., *SMUG: Towards Robust MRI Reconstruction by Smoothed Unrolling*, arXiv:2303.12735.
    """
    weights = _per_row(weight, denoised)
    return solve_normal_equations(
        normal, adjoint_measurement + weights * denoised, weights, denoised, tolerance, iterations
    )


def solve_normal_equations(
    normal: Normal,
    right: Tensor,
    weight: float | Tensor = 1.0,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    iterations: int = 30,
) -> Tensor:
    r"""Solve $(A^H A + \lambda I)\, x = b$ for each image of a batch.

    Each row has its own step lengths and stopping criterion, so an image does not depend on the others in its batch.
    [`conjugate_gradient`][lightning_unlearn.functional.conjugate_gradient], in contrast, has one step for a whole list
    of parameters, reads it on the host, and rejects indefinite matrices.

    It can be differentiated any number of times in both modes, with respect to ``right`` and ``weight``, also by
    ``torch.func.vjp`` and ``jvp``, but not by ``vmap``.

    Args:
        normal: $A^H A$, which maps images (B, H, W) to images, row by row.
        right: The right-hand side $b$. Shape (B, H, W), complex64 or complex128.
        weight: $\lambda > 0$: a number, or a tensor of shape (), (B,) or (B, 1, 1).
        start: Starting point of the iterations; by default zero. No gradient reaches it: the solution does not depend
            on it.
        tolerance: A row is done when the norm of its residual is at most this fraction of that of ``right``.
        iterations: Maximum number of iterations.

    Returns:
        The solution. Shape (B, H, W).

    Raises:
        ValueError: If ``normal`` itself requires a gradient.
    """
    first = torch.zeros_like(right) if start is None else start.detach()
    image = None if start is None else normal(first)
    if image is not None and image.requires_grad:
        raise ValueError(
            "The operator requires a gradient, and this solver gives none to it: maps that are learned would stay as "
            "they are. Detach the maps, or use ISTANet, which differentiates through the operator."
        )
    return _Solve.apply(normal, right, _per_row(weight, right), first, image, tolerance, iterations)


class _Solve(torch.autograd.Function):
    """Solution of Q x = b, differentiated by the implicit function theorem; Q is self-adjoint."""

    @staticmethod
    def forward(
        normal: Normal,
        right: Tensor,
        weight: Tensor,
        start: Tensor,
        image: Tensor | None,
        tolerance: float,
        iterations: int,
    ) -> Tensor:
        return _iterate(normal, right, weight, start, image, tolerance, iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        normal, _, weight, _, _, tolerance, iterations = inputs
        ctx.solve = lambda right, weight: solve_normal_equations(
            normal, right, weight, tolerance=tolerance, iterations=iterations
        )
        ctx.save_for_backward(weight, output)
        ctx.save_for_forward(weight, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weight, solution = ctx.saved_tensors
        adjoint = ctx.solve(gradients[0], weight)
        of_weight = None
        if ctx.needs_input_grad[2]:
            of_weight = -(adjoint.conj() * solution).real.sum((-2, -1), keepdim=True).sum_to_size(weight.shape)
        return None, adjoint, of_weight, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        weight, solution = ctx.saved_tensors
        right = tangents[1] if tangents[1] is not None else torch.zeros_like(solution)
        if tangents[2] is not None:
            right = right - tangents[2] * solution
        return ctx.solve(right, weight)


@torch.no_grad()
def _iterate(
    normal: Normal,
    right: Tensor,
    weight: Tensor,
    start: Tensor,
    image: Tensor | None,
    tolerance: float,
    iterations: int,
) -> Tensor:
    """Conjugate gradients in which finished rows no longer change.

    A finished row divides 0 by 0; it keeps its values because the quotient is not used. A row of NaN is never greater
    than its goal, so it counts as finished and does not hold up the others.
    """
    solution = start.clone()
    residual = right.clone() if image is None else right - image - weight * start
    direction = residual.clone()
    squared = _dot(residual, residual)
    goal = tolerance**2 * _dot(right, right) + torch.finfo(squared.dtype).tiny
    # Checking whether all rows are done waits for the device. Finished rows do not change, so the answer may be late.
    interval = 1 if right.device.type == "cpu" else 3
    for iteration in range(iterations):
        active = squared > goal
        if iteration % interval == 0 and not active.any():
            break
        image = normal(direction) + weight * direction
        step = torch.where(active, squared / _dot(direction, image), 0)
        solution += step * direction
        residual -= step * image
        before, squared = squared, _dot(residual, residual)
        direction = residual + torch.where(active, squared / before, 0) * direction
    return solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product of each row. Shape (B, 1, 1)."""
    return (torch.view_as_real(a) * torch.view_as_real(b)).sum((-3, -2, -1))[:, None, None]


def _per_row(weight: float | Tensor, like: Tensor) -> Tensor:
    """The weight in the shape (1 or B, 1, 1), as a real tensor."""
    if isinstance(weight, Tensor):
        return weight.to(like.device, like.real.dtype).reshape(-1, 1, 1)
    return torch.full((1, 1, 1), weight, dtype=like.real.dtype, device=like.device)
