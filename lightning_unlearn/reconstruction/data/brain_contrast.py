"""Random contrast, orientation and phase of brain slices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_unlearn.reconstruction.data.brain_template import BrainTemplate

__all__ = ["complex_slice", "quadratic_phase"]

_GAMMA = (0.7, 1.4)
_WEIGHTS = {"PD": (0.95, 0.8, 1.0), "T2": (0.55, 0.4, 1.0)}  # of grey matter, white matter and fluid
_JITTER = 0.1


def complex_slice(template: BrainTemplate, place: int, generator: torch.Generator, variety: bool) -> Tensor:
    r"""A complex image of a slice: $(\text{contrast})^\gamma e^{i\varphi}$.

    With a probability of a third each, the contrast is that of the T1-weighted template, or a mixture of its tissues as
    in proton-density-weighted or T2-weighted images; $\gamma$ is log-uniform in [0.7, 1.4]. Images are mirrored along
    each axis with a probability of a half.

    Args:
        template: The slices.
        place: Index of the slice.
        generator: Source of all random draws.
        variety: Whether to draw contrast and orientation; otherwise the slice is the T1-weighted one. The phase is
            always drawn.

    Returns:
        Shape ``(size, size)``, complex.
    """
    gamma, kind, first, second = torch.rand(4, generator=generator).tolist()
    weights = torch.rand(3, generator=generator).tolist()
    _, height, width = template.t1.shape
    phase = quadratic_phase(height, width, generator)
    if not variety:
        return torch.polar(template.t1[place], phase)
    image = template.t1[place] if kind < 1 / 3 else _mixture(template, place, "PD" if kind < 2 / 3 else "T2", weights)
    low, high = map(math.log, _GAMMA)
    image = image ** math.exp(low + (high - low) * gamma)
    axes = [axis for axis, draw in ((0, first), (1, second)) if draw < 0.5]
    return torch.polar(image.flip(axes), phase)


def quadratic_phase(height: int, width: int, generator: torch.Generator) -> Tensor:
    r"""A smooth phase $\varphi(x, y) = \sum_{i + j \le 2} c_{ij} x^i y^j$ on $[-1, 1]^2$, in radians.

    $c_{00}$ is uniform in $[-\pi, \pi]$, the others in $[-\pi/2, \pi/2]$.

    Args:
        height: Rows.
        width: Columns.
        generator: Source of the coefficients.

    Returns:
        Shape ``(height, width)``.
    """
    x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    terms = torch.stack([torch.ones(height, width), *(t.expand(height, width) for t in (x, y, x * x, x * y, y * y))])
    limits = torch.tensor([torch.pi, *[torch.pi / 2] * 5])
    coefficients = (2 * torch.rand(6, generator=generator) - 1) * limits
    return torch.einsum("t,thw->hw", coefficients, terms)


def _mixture(template: BrainTemplate, place: int, kind: str, draws: list[float]) -> Tensor:
    tissues = (template.grey, template.white, template.fluid)
    weights = [w * (1 + _JITTER * (2 * draw - 1)) for w, draw in zip(_WEIGHTS[kind], draws, strict=True)]
    return torch.stack([w * tissue[place] for w, tissue in zip(weights, tissues, strict=True)]).sum(0)
