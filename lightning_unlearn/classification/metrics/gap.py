"""Average gap to the retrained model, in percentage points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_unlearn.classification.metrics.checks import check_same_keys
from lightning_unlearn.core.seeds import SeedMetric

__all__ = ["AverageGap", "average_gap"]


def average_gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    r"""Mean absolute difference to the retrained model, $\frac{1}{|M|}\sum_{m \in M} |m(\theta_u) - m(\theta_r)|$.

    Published tables use UA, RA, TA and the confidence MIA for $M$.

    Args:
        unlearned: Metrics of the unlearned model by name, in percent.
        retrained: The same metrics of the model retrained with the same seed and split.

    Returns:
        In [0, 100]; 0, equal to the retrained model, is best.

    Raises:
        ValueError: If the names differ or a number is not finite.

    Example:
        >>> average_gap({"ua": 90.0, "ra": 98.0}, {"ua": 100.0, "ra": 100.0})
        6.0

    References:
        Fan et al., *SalUn*, arXiv:2310.12508. Di et al., *Label Smoothing Improves Machine Unlearning*,
        arXiv:2406.07698.
    """
    check_same_keys(unlearned, retrained)
    return sum(abs(float(unlearned[name]) - float(retrained[name])) for name in unlearned) / len(unlearned)


class AverageGap(SeedMetric):
    r"""Average gap to retraining over seeds, $\frac1n\sum_s \frac1{|M|}\sum_{m \in M} |m(\theta_u^s) - m(\theta_r^s)|$.

    The gap is computed within each seed and split and then averaged; in a gap of averages, seeds would cancel out. In
    [0, 100]; 0, equal to the retrained model, is best. With several processes, update each seed on only one of them.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If the level is out of range, the names of the metrics differ or a number is not finite.
        ImportError: If scipy is missing and there is more than one seed; raised by ``compute``.

    Example:
        >>> gap = AverageGap()
        >>> gap.update({"ua": 90.0, "ra": 98.0}, {"ua": 100.0, "ra": 100.0})
        >>> gap.compute().mean
        6.0

    References:
        Fan et al., *SalUn*, arXiv:2310.12508. Di et al., *Label Smoothing Improves Machine Unlearning*,
        arXiv:2406.07698.
    """

    higher_is_better: bool | None = False

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(level, **kwargs)

    def update(self, unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> None:
        """Count one seed: the metrics of both models by name, in percent."""
        self.add(average_gap(unlearned, retrained))
