"""Contradictions among the recorded numbers of a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose
from statistics import NormalDist

from lightning_unlearn.audit.bounds import Bounds
from lightning_unlearn.audit.evidence import Evidence
from lightning_unlearn.audit.gates import Degeneration, GateResult, Utility

__all__ = ["recounted"]


def recounted(evidence: Evidence) -> Iterator[str]:
    """Say which numbers can't all be true: ratios of other means, and bounds of other standard errors.

    Bounds of the bootstrap need the scores themselves, which no record holds; they must only be in order.

    Args:
        evidence: The evidence, as recorded.
    """
    for gate in evidence.gates:
        yield from (f"{gate.name}: {what}" for what in _gate(gate))
    for ability in evidence.retain:
        yield from _mean(ability, ability.unlearned - ability.share * ability.control, evidence.thresholds.level)
    for rate in evidence.quality:
        yield from _mean(rate, rate.unlearned - rate.control, evidence.thresholds.level)


def _gate(gate: GateResult) -> Iterator[str]:
    if gate.noise_floor is None:  # of several controls, each bound is the worse one
        base = gate.control if gate.original_matched is None else gate.original_matched
        gap, above = gate.original - base, gate.unlearned - gate.control
        if not _near(gate.gap, gap):
            yield f"gap is {gate.gap}, but the means give {gap}"
        kappa = above / gap if gate.gap > 0 and gap else None
        if (gate.kappa is None) != (kappa is None) or (kappa is not None and not _near(gate.kappa, kappa)):
            yield f"kappa is {gate.kappa}, but the means give {kappa}"
        for bounds in (gate.over, gate.small, gate.large):
            mean = above - bounds.threshold * gap
            if not _near(bounds.mean, mean):
                yield f"the mean at {bounds.threshold} is {bounds.mean}, but those of the models give {mean}"
    for bounds in (gate.over, gate.small, gate.large):
        if not bounds.lower_any <= bounds.lower <= bounds.upper:
            yield f"the bounds at {bounds.threshold} are not in order"
        elif gate.method == "normal" and gate.noise_floor is None:
            yield from _normal(bounds, gate)


def _normal(bounds: Bounds, gate: GateResult) -> Iterator[str]:
    z = NormalDist().inv_cdf
    for name, value, level in (
        ("lower", bounds.lower, 1 - gate.level),
        ("upper", bounds.upper, gate.level),
        ("lower_any", bounds.lower_any, (1 - gate.level) / gate.comparisons),
    ):
        expected = bounds.mean + z(level) * bounds.error
        if not _near(value, expected):
            yield f"{name} at {bounds.threshold} is {value}, but mean and standard error give {expected}"


def _mean(result: Utility | Degeneration, mean: float, level: float) -> Iterator[str]:
    z = NormalDist().inv_cdf(level) * result.error
    for name, value, expected in (
        ("mean", result.mean, mean),
        ("lower", result.lower, mean - z),
        ("upper", result.upper, mean + z),
    ):
        if not _near(value, expected):
            yield f"{result.name}: {name} is {value}, but the other numbers give {expected}"


def _near(value: float | None, expected: float) -> bool:
    return value is not None and isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)
