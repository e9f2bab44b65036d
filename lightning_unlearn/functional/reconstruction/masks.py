"""Sampling masks of k-space columns for Cartesian MRI."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_unlearn.functional.random import keyed_generator

__all__ = ["MaskPattern", "column_mask"]

MaskPattern = Literal["random", "gaussian", "equispaced"]


def column_mask(
    width: int,
    acceleration: float = 4.0,
    pattern: MaskPattern = "random",
    center_fraction: float | None = None,
    gaussian_width: float = 0.25,
    seed: int = 0,
) -> Tensor:
    r"""Columns of k-space measured by an accelerated scan: a block at the centre, and some columns outside it.

    Of $W$ columns $n = \max(1, \mathrm{round}(W/R))$ are measured, of which a block of
    $l = \min(n, \max(1, \mathrm{round}(fW)))$ lies at the centre. ``"random"`` draws the others uniformly without
    replacement, ``"gaussian"`` with $p(k) \propto e^{-(k/sW)^2}$ at a distance of $k$ columns from the centre.
    ``"equispaced"`` takes every $d$-th column, starting at a random offset, with

    $$d = \frac{R\,(l - W)}{lR - W},$$

    which gives about $n$ columns together with the block, as in fastMRI: the number varies by a few columns.

    The block is centred on the zero frequency. The code of SMUG starts it at ``(width - l) // 2``, which is one column
    earlier if the width is even and the block odd.

    Args:
        width: The number of columns $W$.
        acceleration: $R \ge 1$.
        pattern: How columns outside the block are chosen.
        center_fraction: $f$, in [0, 1]. By default $0.32/R$, which is fastMRI's 8 % at $R = 4$ and 4 % at $R = 8$.
        gaussian_width: $s$, as a fraction of the width.
        seed: Seed of the columns, which are the same on every device and process.

    Returns:
        Shape (W,), boolean. The zero frequency is column ``width // 2``.

    Raises:
        ValueError: If a number is out of range, or ``pattern`` is unknown.

    Example:
        >>> mask = column_mask(368, acceleration=4)
        >>> int(mask.sum()), int(mask[170:199].sum())
        (92, 29)

    References:
        Zbontar et al., *fastMRI: An Open Dataset and Benchmarks for Accelerated MRI*, arXiv:1811.08839, Section 5.
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """
    _check(width, acceleration, pattern, center_fraction, gaussian_width)
    lines = max(1, round(width / acceleration))
    fraction = 0.32 / acceleration if center_fraction is None else center_fraction
    block = min(lines, max(1, round(fraction * width)))
    start = (width - block + 1) // 2
    mask = torch.zeros(width, dtype=torch.bool)
    mask[start : start + block] = True
    generator = keyed_generator(seed)
    if pattern == "equispaced":
        mask[_equispaced(width, acceleration, block, generator)] = True
    else:
        distance = (torch.arange(width) - width // 2).double()
        log_density = -(distance / (gaussian_width * width)).square() * (pattern == "gaussian")
        # The largest values of log p + Gumbel noise are a sample without replacement, however small p is.
        noise = -torch.empty(width, dtype=torch.float64).exponential_(generator=generator).log()
        mask[(log_density + noise).masked_fill(mask, -torch.inf).topk(lines - block).indices] = True
    return mask


def _equispaced(width: int, acceleration: float, block: int, generator: torch.Generator) -> Tensor:
    spare = width - block * acceleration
    if spare <= 0:  # the block alone has as many lines as requested
        return torch.arange(0)
    distance = acceleration * (width - block) / spare
    offset = torch.randint(min(round(distance), width), (), generator=generator).item()
    return torch.arange(offset, width - 0.5, distance, dtype=torch.float64).round().long()


def _check(width: int, acceleration: float, pattern: str, center_fraction: float | None, gaussian_width: float) -> None:
    if width < 1 or not 1 <= acceleration <= width:
        raise ValueError(
            f"acceleration must be in [1, width], but got {acceleration} for {width} columns: a mask of a share of "
            "1 / acceleration needs at least one."
        )
    if center_fraction is not None and not 0 <= center_fraction <= 1:
        raise ValueError(f"center_fraction must be in [0, 1], but got {center_fraction}: it is a share of the columns.")
    if not gaussian_width > 0:
        raise ValueError(f"gaussian_width must be greater than 0, but got {gaussian_width}.")
    if pattern not in get_args(MaskPattern):
        raise ValueError(f"pattern must be one of {get_args(MaskPattern)}, but got {pattern!r}.")
