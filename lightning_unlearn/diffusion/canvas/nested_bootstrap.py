"""Bootstrap intervals over runs, and over the prompts within each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, finite, inside
from lightning_unlearn.core.intervals import Interval

__all__ = ["nested_bootstrap"]


def nested_bootstrap(
    runs: Sequence[Sequence[Tensor]], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    r"""Mean over runs of a mean over prompts, or of the difference of two such means, with a percentile interval.

    $$\frac{1}{R} \sum_r \left( \frac{1}{n_r} \sum_i a_{ri} - \frac{1}{m_r} \sum_j b_{rj} \right)$$

    Runs, each with a target and a seed, are drawn with replacement, and then the prompts of each drawn run, separately
    for $a$ and $b$. To compare pairwise with the model before erasure, pass differences as the values.

    Args:
        runs: Of each run the values $a_r$, shape ``(n_r,)``, or $a_r$ and $b_r$.
        level: Level of the interval, in (0, 1).
        draws: Number of resamples.
        seed: Seed of the draw, apart from the global random state.

    Raises:
        ValueError: If there are no values, one is not finite, a run has not as many groups as the first, or an option
            is out of range.

    Example:
        >>> nested_bootstrap([[torch.ones(3), torch.zeros(2)]])
        Interval(value=1.0, low=1.0, high=1.0)
    """
    inside("level", level, 0, 1)
    at_least("draws", draws, 1)
    at_least("the number of runs", len(runs), 1)
    if {len(groups) for groups in runs} not in ({1}, {2}):
        raise ValueError(f"Each run has one group of values, or each two, but got {[len(groups) for groups in runs]}.")
    signed = [[(1 - 2 * g, values.detach().cpu().double()) for g, values in enumerate(groups)] for groups in runs]
    for groups in signed:
        for _, values in groups:
            finite("values", values)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(runs), (draws, len(runs)), generator=generator)
    means = torch.zeros(draws, dtype=torch.float64)
    for number, groups in enumerate(signed):
        times, places = (chosen == number).nonzero()[:, 0], int((chosen == number).sum())
        for sign, values in groups:
            drawn = values[torch.randint(len(values), (places, len(values)), generator=generator)].mean(1)
            means.index_add_(0, times, sign * drawn / len(runs))
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    value = sum(float(sign * values.mean()) for groups in signed for sign, values in groups) / len(runs)
    return Interval(value, low, high)
