"""Composite scores of memorisation, privacy and utility, and the robustness of a metric to attacks on the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from lightning_unlearn.core.checks import between, one_of
from lightning_unlearn.core.seeds import SeedMetric
from lightning_unlearn.language.metrics.model_utility import harmonic_mean

__all__ = [
    "Composite",
    "CompositeResult",
    "RecoveryResult",
    "composite",
    "quantisation_robustness",
    "recovery",
    "relearning_robustness",
    "robustness",
]

Direction = Literal["comes_back", "goes_away", "symmetric"]

_MEMORISATION = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio_prob_mean")
_PRIVACY = ("s_loss", "s_zlib", "s_min_k", "s_min_k_plus_plus")
_UTILITY = ("model_utility", "fluency")


class CompositeResult(NamedTuple):
    """Composite scores, each in [0, 1], higher is better. They hide which part failed: show the parts beside them.

    Args:
        memorisation: Harmonic mean of one minus each measure of memorisation.
        privacy: Harmonic mean of the closeness of membership attacks to those on the retrained model.
        utility: Harmonic mean of model utility and fluency.
        overall: Harmonic mean of the three.
    """

    memorisation: float
    privacy: float
    utility: float
    overall: float


def composite(parts: Mapping[str, float]) -> CompositeResult:
    r"""Composite scores in the style of open-unlearning's paper.

    $$\mathrm{Mem} = \mathrm{HM}(1 - \mathrm{ES}, 1 - \mathrm{EM}, 1 - p(\tilde a), 1 - \mathrm{TR}), \qquad
      \mathrm{Privacy} = \mathrm{HM}(s_{\mathrm{LOSS}}, s_{\mathrm{zlib}}, s_{\mathrm{MinK}}, s_{\mathrm{MinK++}})$$

    Args:
        parts: ``extraction_strength``, ``exact_memorization``, ``paraphrase_probability`` and
            ``truth_ratio_prob_mean`` of the forget rows; ``s_loss``, ``s_zlib``, ``s_min_k`` and ``s_min_k_plus_plus``
            (see [`s_mia`][lightning_unlearn.functional.language.privacy.s_mia]); ``model_utility`` and ``fluency``,
            each relative to the original or retrained model where values above it should not count. All in [0, 1].

    Raises:
        ValueError: If a part is missing or unknown, or not in [0, 1].

    Example:
        >>> names = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio_prob_mean")
        >>> others = ("s_loss", "s_zlib", "s_min_k", "s_min_k_plus_plus", "model_utility", "fluency")
        >>> composite({**dict.fromkeys(names, 0.5), **dict.fromkeys(others, 0.5)}).overall
        0.5

    References:
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """
    wanted = {*_MEMORISATION, *_PRIVACY, *_UTILITY}
    if set(parts) != wanted:
        raise ValueError(
            f"The parts {sorted(wanted - set(parts))} are missing and {sorted(set(parts) - wanted)} are unknown."
        )
    for name, value in parts.items():
        between(name, value, 0, 1)
    memorisation = harmonic_mean(1 - parts[name] for name in _MEMORISATION)
    privacy = harmonic_mean(parts[name] for name in _PRIVACY)
    utility = harmonic_mean(parts[name] for name in _UTILITY)
    return CompositeResult(memorisation, privacy, utility, harmonic_mean([memorisation, privacy, utility]))


class Composite(SeedMetric):
    """The overall composite score over seeds, with a Student confidence interval; see `composite`.

    In [0, 1]; higher is better. With several processes, update each seed on one of them only.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If a part is missing, unknown or out of range.
        ImportError: If scipy is missing and there is more than one seed; raised by ``compute``.
    """

    higher_is_better: bool | None = True

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(level, **kwargs)

    def update(self, parts: Mapping[str, float]) -> None:
        """Count the parts of one seed."""
        self.add(composite(parts).overall)


def relearning_robustness(
    unlearned: tuple[float, float], retrained: tuple[float, float], direction: Direction = "comes_back"
) -> float | None:
    r"""Whether a metric rises under relearning no faster than on a retrained model.

    $$R = \min\Big(\frac{m_r^{a} - m_r^{b}}{m_u^{a} - m_u^{b}}, 1\Big)$$

    Args:
        unlearned: The metric, higher for more knowledge, of the unlearned model before ($b$) and after ($a$)
            relearning.
        retrained: The same of the retrained model.
        direction: ``"comes_back"`` as above; ``"symmetric"`` for
            $1 - \mathrm{clip}(|\Delta_u - \Delta_r| / (|\Delta_u| + |\Delta_r|), 0, 1)$.

    Returns:
        At most 1, which is robust; ``None`` where the unlearned model did not move, so that the ratio says nothing.

    Raises:
        ValueError: If the direction is unknown.

    Example:
        >>> round(relearning_robustness((0.2, 0.6), (0.15, 0.45)), 10)
        0.75

    References:
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """
    one_of("direction", direction, ("comes_back", "symmetric"))
    moved, expected = unlearned[1] - unlearned[0], retrained[1] - retrained[0]
    if direction == "symmetric":
        return _symmetric(moved, expected)
    return min(expected / moved, 1.0) if moved else None


def quantisation_robustness(before: float, after: float, direction: Direction = "comes_back") -> float | None:
    r"""Whether a metric of the unlearned model stays what it was when the weights are quantised.

    Args:
        before: The metric, higher for more knowledge, of the model as it is, $b$.
        after: Of the quantised model, $a$.
        direction: ``"comes_back"``: $\min(b/a, 1)$ punishes knowledge that quantisation brings back. ``"goes_away"``:
            $\min(a/b, 1)$, as one released script documents. ``"symmetric"``:
            $1 - \mathrm{clip}(|a - b| / (|a| + |b|), 0, 1)$.

    Returns:
        At most 1, which is robust; ``None`` where the ratio divides by 0.

    Raises:
        ValueError: If the direction is unknown.

    Example:
        >>> quantisation_robustness(0.2, 0.5)
        0.4

    References:
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """
    one_of("direction", direction, Direction)
    if direction == "symmetric":
        return _symmetric(after, before)
    above, below = (before, after) if direction == "comes_back" else (after, before)
    return min(above / below, 1.0) if below else None


def robustness(relearning: float | None, quantisation: float | None) -> float | None:
    """Harmonic mean of both; ``None`` where either is undefined.

    Example:
        >>> round(robustness(0.75, 0.4), 10)
        0.5217391304
    """
    return None if relearning is None or quantisation is None else harmonic_mean([relearning, quantisation])


class RecoveryResult(NamedTuple):
    """How much of a metric relearning brings back.

    Args:
        curve: Recovery at each measurement, $(m(s) - m(0)) / (m_o - m(0))$; 1 is the original's value.
        end: Recovery at the last step.
        area: Area under the curve by trapezoids, over the range of steps. Good is that of the retrained model.
        half: First measured step with a recovery of at least one half; ``None`` where there is none.
    """

    curve: tuple[float, ...]
    end: float
    area: float
    half: int | None


def recovery(steps: Sequence[int], values: Sequence[float], original: float) -> RecoveryResult | None:
    r"""Recovery of a metric under relearning, $\rho(s) = \frac{m(s) - m(0)}{m_o - m(0)}$, and the area under it.

    Any model learns in time: compare with the same curve of the retrained model.

    Args:
        steps: Optimizer updates before each measurement, rising, the first 0.
        values: The metric at each of them, at least two.
        original: The metric of the original model $m_o$.

    Returns:
        The curve and its summaries; ``None`` where the model starts at the original's value.

    Raises:
        ValueError: If lengths differ, there are fewer than two, or steps do not rise.

    Example:
        >>> result = recovery(range(0, 120, 20), [0.26, 0.40, 0.50, 0.55, 0.58, 0.60], original=0.64)
        >>> round(result.end, 10), round(result.area, 10), result.half
        (0.8947368421, 0.6105263158, 40)
    """
    steps, values = list(steps), [float(value) for value in values]
    if len(steps) != len(values) or len(steps) < 2 or sorted(set(steps)) != steps:
        raise ValueError(f"Rising steps with a value each, at least two, are needed, but got {steps} and {values}.")
    if original == values[0]:
        return None
    curve = [(value - values[0]) / (original - values[0]) for value in values]
    area = float(torch.trapezoid(torch.tensor(curve, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64)))
    half = next((step for step, share in zip(steps, curve, strict=True) if share >= 0.5), None)
    return RecoveryResult(tuple(curve), curve[-1], area / (steps[-1] - steps[0]), half)


def _symmetric(a: float, b: float) -> float | None:
    return 1 - min(1.0, abs(a - b) / (abs(a) + abs(b))) if a or b else None
