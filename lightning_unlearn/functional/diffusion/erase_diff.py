"""Multiplier of EraseDiff for the forget gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["MultiplierRule", "erasediff_multiplier"]

MultiplierRule = Literal["cosine", "norm", "value"]


def erasediff_multiplier(
    inner: Tensor,
    retain_norm: Tensor,
    forget_norm: Tensor,
    gap: Tensor | None = None,
    *,
    rule: MultiplierRule = "cosine",
    eta: float = 0.1,
) -> Tensor:
    r"""Weight $\lambda$ of the forget gradient $\nabla q$ relative to the retain gradient $\nabla f$.

    ``"cosine"`` is the rule of the released code: $\lambda = \max(0,\; \eta - \cos(\nabla f, \nabla q))$, in
    $[0, 1 + \eta]$. ``"norm"`` and ``"value"`` are the rule of BOME, $\lambda = \max(0,\; (\phi - \langle\nabla f,
    \nabla q\rangle) / \|\nabla q\|^2)$, with $\phi = \eta \|\nabla q\|^2$ and $\phi = \eta\, q$: the smallest weight
    with which a step lowers $q$ at the rate $\phi$.

    Args:
        inner: $\langle\nabla f, \nabla q\rangle$, a scalar.
        retain_norm: $\|\nabla f\|$, a scalar.
        forget_norm: $\|\nabla q\|$, a scalar; if it is 0, so is $\lambda$.
        gap: $q$, a scalar, for ``"value"``.
        rule: ``"cosine"``, ``"norm"`` or ``"value"``.
        eta: $\eta \ge 0$.

    Returns:
        A scalar, without gradient.

    Raises:
        ValueError: If the rule is unknown, or needs a gap that is not given.

    Example:
        >>> f, q = torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0])
        >>> norms = f.norm(), q.norm()
        >>> erasediff_multiplier(f @ q, *norms), erasediff_multiplier(f @ q, *norms, rule="norm")
        (tensor(1.1000), tensor(0.6000))

    References:
        Wu et al., *EraseDiff: Erasing Data Influence in Diffusion Models*, arXiv:2401.05779; Liu et al., *BOME! Bilevel
        Optimization Made Easy*, arXiv:2209.08709.
    """
    if rule not in ("cosine", "norm", "value"):
        raise ValueError(f"rule must be 'cosine', 'norm' or 'value', but got {rule!r}.")
    if rule == "value" and gap is None:
        raise ValueError("rule='value' reads the gap q. Pass gap, or take rule='cosine' or 'norm'.")
    tiny = torch.finfo(inner.dtype).tiny
    square = forget_norm.square().clamp(min=tiny)
    if rule == "cosine":
        multiplier = eta - (inner / (retain_norm * forget_norm).clamp(min=tiny)).clamp(-1, 1)
    elif rule == "norm":
        multiplier = eta - inner / square
    else:
        assert gap is not None
        multiplier = (eta * gap - inner) / square
    return torch.where(forget_norm > 0, multiplier.clamp(min=0), torch.zeros_like(inner)).detach()
