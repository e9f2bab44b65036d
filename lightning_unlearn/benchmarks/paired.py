"""Paired differences of two methods over seeds and images, with intervals that account for both."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from lightning_unlearn.core.checks import finite, inside

__all__ = ["PairedDifference", "Verdict", "paired_difference"]

Verdict = Literal["holds", "does not hold", "undecided"]


class PairedDifference(NamedTuple):
    """The mean of paired differences, with its confidence interval.

    Args:
        mean: Mean over seeds and images.
        low: Lower end of the interval.
        high: Upper end.
        seeds: Number of seeds; with one, the interval says nothing of other seeds.
        images: Number of images.
    """

    mean: float
    low: float
    high: float
    seeds: int
    images: int

    def above(self, bound: float = 0.0) -> Verdict:
        """Whether the claim holds that the difference is above a bound: where all of the interval is."""
        if self.low > bound:
            return "holds"
        return "does not hold" if self.high < bound else "undecided"


def paired_difference(differences: Tensor, level: float = 0.95) -> PairedDifference:
    r"""The mean difference of two methods that were trained on the same seeds and measured on the same images.

    Seeds and images are both samples of what could have been run, and cross: every seed is measured on every image.
    With the mean squares $M_s$ of seeds, $M_i$ of images and $M_e$ of what remains, of $S$ seeds and $I$ images,

    $$\bar d \pm t_{\nu,\,(1+\mathrm{level})/2} \sqrt{\frac{V}{S I}}, \qquad V = \max(M_s + M_i - M_e,\ M_s,\ M_i)$$

    and Satterthwaite's degrees of freedom $\nu = V^2 / \big(\frac{M_s^2}{S-1} + \frac{M_i^2}{I-1} +
    \frac{M_e^2}{(S-1)(I-1)}\big)$; where $V$ is $M_s$ or $M_i$ alone, those of it. With a single seed it is Student's
    interval over images.

    Args:
        differences: One number a seed and image, shape ``(S, I)``.
        level: Level of the interval, in (0, 1).

    Raises:
        ValueError: If there are fewer than two images, a number is not finite, or the level is out of range.

    Example:
        >>> import torch
        >>> paired_difference(torch.tensor([[1.0, 2.0, 3.0]]))
        PairedDifference(mean=2.0, low=-0.48..., high=4.48..., seeds=1, images=3)

    References:
        Searle, Casella and McCulloch, *Variance Components*, 1992, for the two-way crossed model;
        Satterthwaite, *An Approximate Distribution of Estimates of Variance Components*, 1946.
    """
    from scipy.stats import t

    finite("differences", differences)
    inside("level", level, 0, 1)
    if differences.dim() != 2 or differences.shape[1] < 2:
        raise ValueError(
            f"differences must have a row a seed and a column an image, of two images at least, but got the shape "
            f"{tuple(differences.shape)}."
        )
    values = differences.double()
    (seeds, images), mean = values.shape, float(values.mean())
    variance, freedom = _variance(values)
    width = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance / (seeds * images)) if variance else 0.0
    return PairedDifference(mean, mean - width, mean + width, seeds, images)


def _variance(values: Tensor) -> tuple[float, float]:
    """Variance of the mean times the number of values, and its degrees of freedom."""
    seeds, images = values.shape
    if seeds == 1:
        return float(values.var()), images - 1
    of_seeds, of_images = values.mean(1, keepdim=True), values.mean(0, keepdim=True)
    rest = values - of_seeds - of_images + values.mean()
    error = float(rest.square().sum()) / ((seeds - 1) * (images - 1))
    by_seed, by_image = images * float(of_seeds.var()), seeds * float(of_images.var())
    variance = by_seed + by_image - error
    if variance <= max(by_seed, by_image):
        return max((by_seed, seeds - 1.0), (by_image, images - 1.0))
    terms = by_seed**2 / (seeds - 1), by_image**2 / (images - 1), error**2 / ((seeds - 1) * (images - 1))
    return variance, variance**2 / sum(terms)
