"""Re-initialisation and gradient projection of Scissorhands."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Initialization", "fresh_values", "projection_weight"]

Initialization = Literal["kaiming_uniform", "trunc_normal"]


def fresh_values(
    parameter: Tensor, generator: torch.Generator, kind: Initialization = "kaiming_uniform", vector: float = 0.0
) -> Tensor:
    r"""Values of an untrained layer.

    Weights with two or more dimensions are drawn: ``"kaiming_uniform"`` from $U[-b, b]$,
    $b = \sqrt{6 / \mathrm{fan}_{in}}$, or ``"trunc_normal"``, a normal distribution with standard deviation 0.02.
    Vectors, for which these are not defined, get a constant.

    Args:
        parameter: Any parameter; only its shape is read.
        generator: Generator on the CPU.
        kind: Distribution of matrices and kernels.
        vector: Value of vectors: 0 for biases, 1 for normalization scales.

    Returns:
        Same shape, fp32, on the CPU.

    Raises:
        ValueError: If the kind is unknown.

    Example:
        >>> fresh_values(torch.ones(3), torch.Generator())
        tensor([0., 0., 0.])
    """
    if kind not in ("kaiming_uniform", "trunc_normal"):
        raise ValueError(f"kind must be 'kaiming_uniform' or 'trunc_normal', but got {kind!r}.")
    values = torch.full(parameter.shape, vector)
    if values.dim() < 2:
        return values
    if kind == "trunc_normal":
        return nn.init.trunc_normal_(values, std=0.02, generator=generator)
    return nn.init.kaiming_uniform_(values, generator=generator)


def projection_weight(inner: Tensor, forget_square: Tensor, margin: float = 0.5, damping: float = 1e-3) -> Tensor:
    r"""Weight of the forget gradient $\nabla f$ that is subtracted from the retain gradient $\nabla r$.

    With weight $v$ the step follows $-(\nabla r - v \nabla f)$. If $\langle\nabla r, \nabla f\rangle \le 0$, a step
    on $\nabla r$ does not lower the forget loss, and $v = 0$. Otherwise

    $$v = \max\Big(m,\; \frac{\langle\nabla r, \nabla f\rangle}{\|\nabla f\|^2 + \delta}\Big),$$

    which is the solution of the quadratic program of gradient episodic memory with one gradient in memory. With
    $m = \delta = 0$ the step is orthogonal to $\nabla f$; with a margin it raises the forget loss slightly.

    Args:
        inner: $\langle\nabla r, \nabla f\rangle$, a scalar.
        forget_square: $\|\nabla f\|^2$, a scalar.
        margin: $m \ge 0$.
        damping: $\delta \ge 0$.

    Returns:
        $v$, a scalar, without gradient.

    Example:
        >>> projection_weight(torch.tensor(6.0), torch.tensor(4.0), damping=0.0)
        tensor(1.5000)

    References:
        Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, arXiv:1706.08840.
    """
    tiny = torch.finfo(inner.dtype).tiny
    weight = (inner / (forget_square + damping).clamp(min=tiny)).clamp(min=margin)
    return torch.where(inner > 0, weight, torch.zeros_like(inner)).detach()
