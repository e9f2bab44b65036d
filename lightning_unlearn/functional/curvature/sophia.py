"""Sophia update: momentum divided by a diagonal curvature estimate, clipped per coordinate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["sophia", "sophia_hessian"]

_EPS = 1e-15
_CHUNK = 1 << 16  # the five arrays of a chunk stay in a core's cache between the operations on them


@torch.no_grad()
def sophia(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    hessians: Sequence[Tensor],
    *,
    lr: float,
    beta1: float = 0.965,
    rho: float = 0.04,
    bs: float = 1.0,
    weight_decay: float = 0.1,
    foreach: bool = False,
) -> Tensor:
    r"""One Sophia update, in place.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        \theta &\leftarrow (1 - \eta\lambda)\,\theta
          - \eta\,\mathrm{sign}(m) \min\Big(\frac{|m|}{\rho\, B\, \max(h, 0) + 10^{-15}},\ 1\Big)

    Apart from the decay, no coordinate moves further than :math:`\eta`. If :math:`h = 0`, it moves exactly that far, in
    the direction of the momentum's sign. :math:`h` can only be negative with Hutchinson's estimate, and then counts as
    0.

    Args:
        weights: Weights :math:`\theta`.
        gradients: Their gradients :math:`g`.
        momenta: Running means of the gradients :math:`m`, fp32.
        hessians: Running means of the curvature estimates :math:`h`, fp32, see
            [`sophia_hessian`][lightning_unlearn.functional.curvature.sophia.sophia_hessian].
        lr: Learning rate :math:`\eta`, the largest step of a coordinate.
        beta1: Decay of the momentum.
        rho: Curvature scale :math:`\rho`; with larger values, steps are shorter and fewer are clipped.
        bs: Number of tokens :math:`B` in the mean whose squared gradient is the estimate: :math:`B\,h` is the
            curvature.
        weight_decay: Decoupled weight decay :math:`\lambda`.
        foreach: Whether to run each operation over all tensors at once, which is faster on a GPU but needs a copy of
            the weights.

    Returns:
        Shape ``(2,)``: the number of clipped coordinates, and the number of coordinates with momentum.

    Example:
        >>> import torch
        >>> w, m, h = torch.zeros(2), torch.zeros(2), torch.tensor([0.0, 1.0])
        >>> sophia([w], [torch.tensor([1.0, 1.0])], [m], [h], lr=0.1, beta1=0.9, rho=1.0, weight_decay=0.0)
        tensor([1., 2.])
        >>> w
        tensor([-0.1000, -0.0100])

    References:
        Liu et al., *Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training*,
        arXiv:2305.14342.
    """
    if not weights:
        return torch.zeros(2)
    counts = []
    update = _multi_tensor if foreach else _single_tensor
    for group in _groups(weights, gradients, momenta, hessians):
        counts.append(update(*group, lr=lr, beta1=beta1, scale=rho * bs, keep=1 - lr * weight_decay))
    return torch.stack([count.to(counts[0].device) for count in counts]).sum(0)


@torch.no_grad()
def sophia_hessian(
    hessians: Sequence[Tensor], estimates: Sequence[Tensor], *, beta2: float = 0.99, square: bool = False
) -> None:
    r"""Update the running mean of the curvature in place: :math:`h \leftarrow \beta_2 h + (1 - \beta_2)\hat h`.

    Args:
        hessians: Running means :math:`h`, fp32.
        estimates: Estimates :math:`\hat h`: for Gauss-Newton-Bartlett, squares of a mean gradient under sampled labels.
        beta2: Decay of the running mean.
        square: Whether to square ``estimates`` first.

    Example:
        >>> import torch
        >>> h = torch.zeros(1)
        >>> sophia_hessian([h], [torch.tensor([4.0])], beta2=0.95)
        >>> h
        tensor([0.2000])
    """
    for h, estimate in _chunks(hessians, estimates):
        given = estimate.to(h.dtype)
        if square:
            h.mul_(beta2).addcmul_(given, given, value=1 - beta2)
        else:
            h.lerp_(given, 1 - beta2)


def _single_tensor(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    hessians: Sequence[Tensor],
    *,
    lr: float,
    beta1: float,
    scale: float,
    keep: float,
) -> Tensor:
    device = momenta[0].device
    clipped, moving = torch.zeros((), device=device), torch.zeros((), device=device)
    eps = torch.full((), _EPS, device=device)
    buffer = torch.empty(0, device=device)
    for w, g, m, h in _chunks(weights, gradients, momenta, hessians):
        if buffer.shape != m.shape:
            buffer = torch.empty_like(m)
        m.lerp_(g.to(m.dtype), 1 - beta1)
        torch.add(eps, h, alpha=scale, out=buffer).clamp_(min=_EPS)
        torch.div(m, buffer, out=buffer).clamp_(-1, 1)
        if keep != 1:
            w.mul_(keep)
        w.add_(buffer, alpha=-lr)
        clipped += _squares(buffer.trunc_())
        moving += _squares(torch.sign(m, out=buffer))
    return torch.stack([clipped, moving])


def _squares(signs: Tensor) -> Tensor:
    """Number of non-zero signs; counting takes eight times as long as a product."""
    flat = signs.reshape(-1)
    return torch.dot(flat, flat)


def _multi_tensor(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    hessians: Sequence[Tensor],
    *,
    lr: float,
    beta1: float,
    scale: float,
    keep: float,
) -> Tensor:
    w, m = list(weights), list(momenta)
    torch._foreach_lerp_(m, [g.to(m.dtype) for g, m in zip(gradients, momenta, strict=True)], 1 - beta1)
    step = torch._foreach_mul(list(hessians), scale)
    torch._foreach_add_(step, _EPS)
    torch._foreach_clamp_min_(step, _EPS)
    torch._foreach_reciprocal_(step)
    torch._foreach_mul_(step, m)
    torch._foreach_clamp_min_(step, -1)
    torch._foreach_clamp_max_(step, 1)
    if keep != 1:
        torch._foreach_mul_(w, keep)
    torch._foreach_add_(w, step, alpha=-lr)
    torch._foreach_trunc_(step)
    clipped = torch.stack(torch._foreach_norm(step, 1)).sum()
    moving = torch.stack([torch.count_nonzero(x) for x in m]).sum()
    return torch.stack([clipped, moving.float()])


def _groups(*columns: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Tensors grouped by device and type."""
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = {}
    for row in zip(*columns, strict=True):
        groups.setdefault((row[0].device, row[0].dtype), []).append(row)
    for rows in groups.values():
        yield tuple(list(column) for column in zip(*rows, strict=True))


def _chunks(*columns: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    for row in zip(*columns, strict=True):
        if all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in row):
            yield from zip(*(tensor.view(-1).split(_CHUNK) for tensor in row), strict=True)
        else:
            yield row
