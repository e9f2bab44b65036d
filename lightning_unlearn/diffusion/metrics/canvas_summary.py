"""Means of UA, IRA and CRA over targets and runs, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import harmonic_mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_unlearn.core.intervals import Interval, bootstrap
from lightning_unlearn.diffusion.canvas.names import Kind

if TYPE_CHECKING:
    from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix

__all__ = ["MEASURES", "WITHOUT_TARGET", "alike", "canvas_summary"]

MEASURES = ("UA", "IRA", "CRA")
"""Accuracies of a model that has unlearned one target."""

WITHOUT_TARGET = "CRA_without_target"
"""CRA over the images in which the target was not asked for."""


def canvas_summary(
    matrices: Sequence[AccuracyMatrix], base: bool = False, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Means of UA, IRA and CRA over the targets of each kind, with bootstrap intervals over runs.

    A run is a target with a seed of the method. Keys are ``style/UA``, ``style/IRA``, ``style/CRA``, ``style/H``, the
    harmonic mean of the three means, and ``style/CRA_without_target`` where it is known of all; and the same of
    ``object/``. A kind without a target is left out.

    Args:
        matrices: One for each seed of the method; they need not have the same targets.
        base: Summarise the base model, as if it had unlearned each target.
        level: Level of the percentile intervals, in (0, 1). An interval of a single run is NaN.
        draws: Number of resamples.
        seed: Seed of the resamples, apart from the global random state.

    Raises:
        ValueError: If there is no matrix, they are of other concepts, or an option is out of range.
    """
    alike(matrices)
    summary: dict[str, Interval] = {}
    kinds: tuple[Kind, ...] = ("style", "object")
    for kind in kinds:
        runs = [matrix.read_out(target, base) for matrix in matrices for target in matrix.targets_of(kind)]
        if not runs:
            continue
        measures = [*MEASURES, *([WITHOUT_TARGET] if all(WITHOUT_TARGET in run for run in runs) else [])]
        values = torch.tensor([[run[measure] for measure in measures] for run in runs], dtype=torch.float64)
        intervals = bootstrap(values, _means_and_harmonic, level, draws, seed)
        if len(runs) == 1:
            intervals = [Interval(interval.value, math.nan, math.nan) for interval in intervals]
        summary |= {f"{kind}/{name}": x for name, x in zip([*measures, "H"], intervals, strict=True)}
    return summary


def _means_and_harmonic(values: Tensor) -> Tensor:
    means = values.mean(0)
    return torch.cat([means, means.new_tensor([harmonic_mean(means[: len(MEASURES)].tolist())])])


def alike(matrices: Sequence[AccuracyMatrix]) -> None:
    """Refuse to average matrices of different styles and objects, or none.

    Raises:
        ValueError: If they are.
    """
    if not matrices:
        raise ValueError("There is no accuracy matrix to average.")
    if any(matrix.concepts != matrices[0].concepts for matrix in matrices):
        raise ValueError("Accuracy matrices are averaged, but are of different styles and objects.")
