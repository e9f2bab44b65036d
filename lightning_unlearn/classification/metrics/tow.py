"""Tug of war (ToW): product of the closeness of each accuracy to that of the retrained model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_unlearn.classification.metrics.checks import check_same_keys
from lightning_unlearn.core.checks import between
from lightning_unlearn.core.seeds import SeedMetric

__all__ = ["ToW", "tow"]


def tow(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    r"""Tug of war, $\prod_{S \in \{f, r, t\}} \big(1 - |a_u(S) - a_r(S)|/100\big)$.

    Args:
        unlearned: Accuracy $a_u$ on the sets ``forget``, ``retain`` and ``test`` in percent. With the MIA efficacy of
            both models as ``forget``, the result is ToW-MIA.
        retrained: The accuracies $a_r$ of the retrained model.

    Returns:
        In [0, 1]; 1, equal to the retrained model, is best.

    Raises:
        ValueError: If a set is missing, or a number is not finite or not in [0, 100].

    Example:
        >>> same = {"forget": 90.0, "retain": 100.0, "test": 92.0}
        >>> tow(same, same)
        1.0

    References:
        Zhao et al., *What Makes Unlearning Hard and What to Do About It*, arXiv:2406.01257.
    """
    check_same_keys(unlearned, retrained)
    if unlearned.keys() != {"forget", "retain", "test"}:
        raise ValueError(f"The sets 'forget', 'retain' and 'test' are needed, but got {sorted(unlearned)}.")
    for value in (*unlearned.values(), *retrained.values()):
        between("an accuracy in percent", value, 0, 100)
    product = 1.0
    for name in unlearned:
        product *= 1 - abs(float(unlearned[name]) - float(retrained[name])) / 100
    return product


class ToW(SeedMetric):
    r"""Tug of war over seeds, the mean of $\prod_{S \in \{f, r, t\}} \big(1 - |a_u(S) - a_r(S)|/100\big)$.

    In [0, 1]; 1, equal to the retrained model, is best. With several processes, update each seed on only one of them.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If the level is out of range, a set is missing, or a number is not in [0, 100].
        ImportError: If scipy is missing and there is more than one seed; raised by ``compute``.

    Example:
        >>> score = ToW()
        >>> same = {"forget": 90.0, "retain": 100.0, "test": 92.0}
        >>> score.update(same, same)
        >>> score.compute().mean
        1.0

    References:
        Zhao et al., *What Makes Unlearning Hard and What to Do About It*, arXiv:2406.01257.
    """

    higher_is_better: bool | None = True

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(level, **kwargs)

    def update(self, unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> None:
        """Count one seed: the accuracies of both models by set, in percent."""
        self.add(tow(unlearned, retrained))
