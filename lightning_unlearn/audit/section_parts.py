"""Measurements and tables of the report of an audit, from its findings."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lightning_unlearn.audit.findings import Findings
from lightning_unlearn.audit.gates import GATES, Degeneration, GateResult, Utility
from lightning_unlearn.core.intervals import Interval as MeanWithInterval
from lightning_unlearn.core.intervals import bootstrap_mean
from lightning_unlearn.report.sections import (
    Anchors,
    ExampleRow,
    Examples,
    Interval,
    Measurement,
    Outcome,
    Part,
)

__all__ = [
    "LEVEL",
    "examples",
    "gate_part",
    "gates_of",
    "kept_sets",
    "left_out",
    "measured",
    "not_run",
    "outcome_of",
    "rate_part",
    "row_part",
    "utility_part",
]

LEVEL = 0.95
"""Level of intervals."""
_SHOWN = 5  # paired answers of a set


def gates_of(findings: Findings, name: str) -> list[GateResult]:
    """The tests of a gate, one for each variant and score."""
    return [gate for gate in findings.verdict.evidence.gates if gate.gate == name]


def outcome_of(gate: GateResult) -> str:
    """What a test of the verdict has established."""
    if gate.passed:
        return "passed"
    return "known" if gate.known else "recovers" if gate.recovers else "undecided"


def gate_part(findings: Findings, gate: GateResult, decides: bool = True) -> Measurement:
    """The recovered share of a gate; of one that decides nothing, without an outcome."""
    blind = findings.verdict.not_run.get(gate.name)
    thresholds = findings.verdict.evidence.thresholds
    name = f"kappa: {GATES.get(gate.gate, gate.gate.replace('_', ' '))}"
    variant = ", ".join(part for part in (gate.variant, gate.score) if part)
    anchors = Anchors(original=1.0, control=0.0)
    if blind or gate.kappa is None:
        reason = blind or "the original scores no higher than the control"
        return Measurement(name, None, n=gate.n, variant=variant, anchors=anchors, outcome="not run", reason=reason)
    both = gate.kappa_lower is not None and gate.kappa_upper is not None
    interval = Interval(gate.kappa_lower, gate.kappa_upper, 2 * gate.level - 1, gate.method) if both else None
    reason = f"at most {thresholds.d} must be established" if decides else "does not count towards the verdict"
    outcome: Outcome = "info"
    if decides:
        outcome = "pass" if gate.passed else "fail" if gate.recovers or gate.known else "info"
    return Measurement(
        name,
        gate.kappa,
        interval,
        gate.n,
        "",
        variant,
        "lower",
        anchors,
        outcome,
        reason,
    )


def row_part(
    findings: Findings,
    name: str,
    key: str,
    label: str,
    variant: str = "",
    better: str = "closer to control",
    unit: str = "share",
) -> Measurement:
    """Mean of a measurement over the rows of a set, on all models."""
    values = {role: findings.column(role, name, key) for role in findings.collected.outcomes}
    mean = bootstrap_mean(torch.tensor(values["unlearned"]))
    anchors = Anchors(
        original=_mean(values["original"]), control=_mean(values["control"]) if "control" in values else None
    )
    return measured(label, mean, len(values["unlearned"]), variant, better, unit, anchors)


def measured(
    name: str,
    mean: MeanWithInterval,
    n: int,
    variant: str = "",
    better: str = "",
    unit: str = "",
    anchors: Anchors | None = None,
) -> Measurement:
    """A mean with its interval, as a measurement."""
    value, low, high = mean
    interval = Interval(low, high, LEVEL, "bootstrap over rows")
    return Measurement(name, value, interval, n, unit, variant, better, anchors or Anchors())  # type: ignore[arg-type]


def utility_part(part: Utility, findings: Findings) -> Measurement:
    """What is left of an ability, beside the reference's."""
    return Measurement(
        part.name,
        part.unlearned,
        Interval(part.lower + part.share * part.control, part.upper + part.share * part.control, 0.9, "normal"),
        part.n,
        "share",
        better="higher",
        anchors=_anchors(part, findings),
        outcome="fail" if part.upper < 0 else "pass" if part.lower >= 0 else "info",
        reason=f"at least {part.share:.0%} of the {findings.reference} model's",
    )


def rate_part(part: Degeneration, findings: Findings) -> Measurement:
    """A rate of degenerate answers, beside the reference's."""
    limit = findings.verdict.evidence.thresholds.degenerate
    return Measurement(
        part.name,
        part.unlearned,
        n=part.n,
        unit="share",
        better="lower",
        anchors=_anchors(part, findings),
        outcome="fail" if part.lower > limit else "pass" if part.upper <= limit else "info",
        reason=f"at most {limit:.0%} above the {findings.reference} model's",
    )


def _anchors(part: Utility | Degeneration, findings: Findings) -> Anchors:
    return Anchors(control=part.control) if findings.reference == "control" else Anchors(original=part.control)


def left_out(name: str, reason: str) -> Measurement:
    """A measurement that was not made, and why."""
    return Measurement(name, None, outcome="not run", reason=reason)


def not_run(findings: Findings, names: Iterable[str]) -> list[Part]:
    """Gates and attacks that were not run, and why."""
    why = {**findings.collected.plan.not_run, **findings.verdict.not_run}
    return [left_out(f"kappa: {GATES.get(name, name)}", why[name]) for name in names if name in why]


def examples(findings: Findings, name: str) -> Examples:
    """Answers of all models to the first rows of a set."""
    plan, roles = findings.collected.plan, list(findings.collected.outcomes)
    sets = {role: findings.rows(role)["sets"][name] for role in roles}
    probes = plan.probes if name == "forget" else findings.probes[name]
    rows = []
    for number, probe in list(enumerate(probes))[:_SHOWN]:
        texts = [sets[role]["answers"] for role in roles]
        rows.append(
            ExampleRow(
                name,
                probe.question if isinstance(probe.question, str) else str(probe.question[-1]["content"]),
                probe.answer,
                [answers[number] if answers is not None else None for answers in texts],
                [bool(sets[role]["matched"][number] >= 0.5) for role in roles],
            )
        )
    return Examples(f"Answers: {name}", roles, rows, "answered correctly")


def kept_sets(findings: Findings) -> list[str]:
    """The sets that were to be kept."""
    return [name for name in findings.rows("unlearned")["sets"] if name not in ("forget", "never_seen")]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
