"""Recovery of forgotten knowledge under attack, on a scale from a control to the original model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

__all__ = [
    "curve_area",
    "meta_robustness",
    "precision_usable",
    "quantization_robustness",
    "recovery",
    "recovery_area",
    "recovery_ratio",
    "relearning_robustness",
    "self_recovery",
    "steps_to_recovery",
]

_EPSILON = 1e-10


def recovery(unlearned: Sequence[float], control: Sequence[float], original: Sequence[float]) -> list[float | None]:
    r"""Recovered share of the knowledge at each point of three curves under the same attack.

    $$\kappa_s = \frac{m_U(s) - m_C(s)}{m_O(s) - m_C(s)}$$

    0 means as if never seen, 1 means untouched; below 0 the model knows less than one that never saw the rows.

    Args:
        unlearned: Metric $m_U$ of the attacked unlearned model at each step.
        control: Metric $m_C$ of a model that never saw the rows, under the same attack.
        original: Metric $m_O$ of the original model, under the same attack.

    Returns:
        One number per step; ``None`` if original and control are equal, so that there is nothing to recover.

    Example:
        >>> [round(k, 4) for k in recovery([0.05, 0.60], [0.06, 0.20], [0.90, 0.90])]
        [-0.0119, 0.5714]
    """
    _same_length(unlearned, control, original)
    return [_ratio(u - c, o - c) for u, c, o in zip(unlearned, control, original, strict=True)]


def curve_area(steps: Sequence[int], values: Sequence[float]) -> float:
    r"""Mean of a metric over the steps of an attack: the area under its curve, by the trapezoidal rule, over $S_{max}$.

    Args:
        steps: Steps of the measurements, ascending from 0.
        values: The metric at each step.

    Raises:
        ValueError: If there are fewer than two steps, or they are not ascending.

    Example:
        >>> curve_area([0, 5, 10, 20], [0.05, 0.30, 0.50, 0.60])
        0.41875
    """
    _same_length(steps, values)
    if len(steps) < 2 or any(later <= step for step, later in pairwise(steps)):
        raise ValueError(f"An area needs at least two steps that ascend, but got {list(steps)}.")
    pieces = zip(steps, steps[1:], values, values[1:], strict=False)
    return sum((b - a) * (x + y) / 2 for a, b, x, y in pieces) / (steps[-1] - steps[0])


def recovery_area(
    steps: Sequence[int], unlearned: Sequence[float], control: Sequence[float], original: Sequence[float]
) -> float | None:
    r"""Recovered share of the knowledge over a whole attack, $\mathrm{AURC} = (A_U - A_C) / (A_O - A_C)$.

    This is a ratio of areas, not a mean of ratios, which steps with nearly equal original and control would dominate.

    Args:
        steps: Steps of the measurements, ascending from 0.
        unlearned: Metric of the attacked unlearned model at each step; its area is $A_U$.
        control: Metric of a model that never saw the rows, under the same attack.
        original: Metric of the original model, under the same attack.

    Returns:
        The ratio; ``None`` if original and control have the same area.

    Example:
        >>> curves = [0.05, 0.30, 0.50, 0.60], [0.06, 0.10, 0.15, 0.20], [0.90] * 4
        >>> round(recovery_area([0, 5, 10, 20], *curves), 4)
        0.3678
    """
    u, c, o = (curve_area(steps, values) for values in (unlearned, control, original))
    return _ratio(u - c, o - c)


def steps_to_recovery(steps: Sequence[int], shares: Sequence[float | None], level: float = 0.5) -> int | None:
    """The first step at which a given share of the knowledge is recovered.

    Args:
        steps: Steps of the measurements.
        shares: Result of `recovery`.
        level: The share.

    Returns:
        The step; ``None`` if the share is not reached.

    Example:
        >>> steps_to_recovery([0, 5, 10, 20], [-0.0119, 0.25, 0.4667, 0.5714])
        20
    """
    _same_length(steps, shares)
    return next((s for s, share in zip(steps, shares, strict=True) if share is not None and share >= level), None)


def self_recovery(values: Sequence[float], original: float) -> list[float | None]:
    r"""Recovery without a control: $\rho(s) = (m(s) - m(0)) / (m_{orig} - m(0))$.

    Everything that any model would learn from the taught rows counts as recovered here, so prefer `recovery` if there
    is a control.

    Args:
        values: Metric of the attacked model at each step, starting with the value before the attack.
        original: Metric of the original model.

    Example:
        >>> rho = self_recovery([0.26, 0.40, 0.50, 0.55, 0.58, 0.60], 0.64)
        >>> round(rho[-1], 4), round(curve_area([0, 20, 40, 60, 80, 100], rho), 4)
        (0.8947, 0.6105)
    """
    return [_ratio(value - values[0], original - values[0]) for value in values]


def relearning_robustness(
    retrained: tuple[float, float], unlearned: tuple[float, float], symmetric: bool = False
) -> float | None:
    r"""Gain of a metric by relearning in the retrained model, relative to that in the unlearned model.

    $$R = \min\left(\frac{\Delta_r}{\Delta_u}, 1\right), \qquad
    R' = 1 - \frac{|\Delta_u - \Delta_r|}{|\Delta_u| + |\Delta_r| + \varepsilon}$$

    Args:
        retrained: The metric of the retrained model before and after relearning; higher is more knowledge.
        unlearned: The same metric of the unlearned model.
        symmetric: Whether to use $R'$, the published symmetric form, instead of $R$ of open-unlearning.

    Returns:
        1 means as robust as retraining; ``None``, for $R$, if the unlearned model's metric does not change.

    Example:
        >>> round(relearning_robustness((0.15, 0.45), (0.20, 0.60)), 9)
        0.75
    """
    rise_r, rise_u = (after - before for before, after in (retrained, unlearned))
    if symmetric:
        return _similarity(rise_u, rise_r)
    ratio = _ratio(rise_r, rise_u)
    return None if ratio is None else min(ratio, 1.0)


def quantization_robustness(
    before: float, after: float, direction: Literal["recovery", "loss"] = "recovery", symmetric: bool = False
) -> float | None:
    r"""Stability of an unlearned model's metric under quantisation.

    $$Q = \min\left(\frac{m_{before}}{m_{after}}, 1\right), \qquad
    Q' = 1 - \frac{|m_{after} - m_{before}|}{|m_{after}| + |m_{before}| + \varepsilon}$$

    Args:
        before: The metric in full precision; higher is more knowledge.
        after: The metric of the quantised model.
        direction: ``"recovery"`` penalises knowledge that comes back. ``"loss"``, the reverse ratio, penalises
            knowledge that is lost; published code uses both directions.
        symmetric: Whether to use $Q'$, the published symmetric form, which penalises both.

    Returns:
        1 means robust; ``None`` if the ratio has a zero denominator.

    Example:
        >>> round(quantization_robustness(0.20, 0.50), 9)
        0.4
    """
    if symmetric:
        return _similarity(after, before)
    ratio = _ratio(before, after) if direction == "recovery" else _ratio(after, before)
    return None if ratio is None else min(ratio, 1.0)


def meta_robustness(relearning: float | None, quantization: float | None) -> float | None:
    """Harmonic mean of both robustness values of a metric; ``None`` if one of them is ``None``.

    Example:
        >>> round(meta_robustness(0.75, 0.4), 10)
        0.5217391304
    """
    if relearning is None or quantization is None:
        return None
    if relearning <= 0 or quantization <= 0:
        return 0.0
    return 2 * relearning * quantization / (relearning + quantization)


def precision_usable(before: float, after: float, drop: float = 0.2) -> bool:
    """Whether the original model is still usable at a precision, so that an attack at this precision is informative.

    Args:
        before: Score of the original model on retain rows, in full precision.
        after: Score of the quantised original model.
        drop: Largest share of the score that may be lost.

    Example:
        >>> precision_usable(0.9, 0.75), precision_usable(0.9, 0.70)
        (True, False)
    """
    return after >= (1 - drop) * before


def recovery_ratio(before: float, after: float, floor: float = 0.05) -> float | None:
    """Score of the attacked model over the score before the attack; ``None`` below ``floor``, where it is unstable.

    Example:
        >>> recovery_ratio(0.25, 0.5), recovery_ratio(0.008, 0.151)
        (2.0, None)
    """
    return after / before if before >= floor else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _similarity(a: float, b: float) -> float:
    return 1 - min(max(abs(a - b) / (abs(a) + abs(b) + _EPSILON), 0.0), 1.0)


def _same_length(*values: Sequence[object]) -> None:
    if len({len(part) for part in values}) > 1:
        raise ValueError(f"Curves have one value a step, but got {[len(part) for part in values]} values.")
