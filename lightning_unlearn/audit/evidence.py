"""Evidence that a verdict is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_unlearn.audit.gates import Degeneration, GateResult, Utility

__all__ = ["CONTROLS", "Case", "Control", "Evidence", "Membership", "Thresholds", "blind", "check", "reference_of"]

Control: TypeAlias = Literal["retrained", "base", "matched rows", "none"]
CONTROLS: dict[Control, str] = {
    "retrained": "a model retrained without the rows",
    "base": "the base model, which was never tuned on the rows",
    "matched rows": "matched rows that the models never saw",
    "none": "none",
}
"""Kinds of control, and what each is, in words."""


def reference_of(control: Control) -> Literal["control", "original"]:
    """The model that abilities are compared with, which has learned what is to be kept: a base model has not."""
    return "control" if control == "retrained" else "original"


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the verdict.

    Args:
        d: Ratio up to which rows count as forgotten.
        D: Ratio from which on they count as not forgotten.
        gap: Least difference between original and control with which a test can see anything.
        retain: Share of the reference's abilities that is to be left, see `reference_of`.
        degenerate: Rate of degenerate answers above the reference's that counts as damage.
        perplexity: Perplexity of neutral text, as a multiple of the reference's, above which a model counts as damaged.
        probes: Least number of probes.
        level: Level of each one-sided bound.
    """

    d: float = 0.10
    D: float = 0.25
    gap: float = 0.20
    retain: float = 0.90
    degenerate: float = 0.10
    perplexity: float = 1.5
    probes: int = 30
    level: float = 0.95


@dataclass(frozen=True)
class Membership:
    """Membership inference on the forget rows against rows that were never seen.

    Args:
        auc: Area under the curve on the unlearned model.
        control_lower: Lower end of the control's interval.
        control_upper: Upper end of the control's interval.
    """

    auc: float
    control_lower: float
    control_upper: float

    @property
    def outside(self) -> bool:
        """Whether the model is told from the control."""
        return not self.control_lower <= self.auc <= self.control_upper


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is computed from.

    Args:
        gates: Results of the gates, one for each gate, setting and score.
        retain: What is left of abilities that were to be kept.
        quality: Rates of degenerate answers.
        control: Kind of the control.
        perplexity: Perplexity of neutral text, divided by the reference's, see `reference_of`.
        membership: Membership inference.
        rows: Number of rows of the request; ``None`` where each is one probe.
        not_run: Gates that were not run, and why.
        faults: What makes the audit void, such as files that do not match.
        thresholds: Thresholds of the rules.
    """

    gates: tuple[GateResult, ...]
    retain: tuple[Utility, ...] = ()
    quality: tuple[Degeneration, ...] = ()
    control: Control = "retrained"
    perplexity: float | None = None
    membership: Membership | None = None
    rows: int | None = None
    not_run: dict[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    thresholds: Thresholds = Thresholds()


@dataclass(frozen=True)
class Case:
    """Evidence, the gates that can see something, and the scores for which the plain questions see nothing."""

    evidence: Evidence
    run: list[GateResult]
    blind_scores: list[str]

    @property
    def base(self) -> list[GateResult]:
        """Plain questions."""
        return [gate for gate in self.run if gate.gate == "base"]

    @property
    def unsettled(self) -> list[GateResult]:
        """Gates for which it is not established that the rows are forgotten."""
        few = [gate for gate in self.base if gate.n < self.evidence.thresholds.probes]  # a relearning attack asks fewer
        return [gate for gate in self.run if not gate.passed or gate in few]

    @property
    def small(self) -> bool:
        """Whether the request has so few rows that they are the whole population."""
        rows = self.evidence.rows
        return (min(gate.n for gate in self.evidence.gates) if rows is None else rows) < self.evidence.thresholds.probes


def blind(evidence: Evidence) -> dict[str, str]:
    """The gates that can't see anything, and why."""
    found = {}
    for gate in evidence.gates:
        control = gate.original - gate.gap
        if gate.gap_lower <= 0 or gate.gap < evidence.thresholds.gap:
            found[gate.name] = (
                f"inconclusive: here the original scores {gate.original:.2f}, which is too low to tell"
                if evidence.control == "none"
                else f"inconclusive: here the original scores {gate.original:.2f} and the control {control:.2f}, too "
                "close to tell apart"
            )
    scores = {gate.score for gate in evidence.gates if gate.gate == "base" and gate.name in found}
    for gate in evidence.gates:
        if gate.score in scores and gate.name not in found:
            found[gate.name] = (
                f"inconclusive: by {gate.score}, the original itself does not show that it knows the rows"
            )
    return found


def check(evidence: Evidence) -> None:
    """Refuse gates that do not belong together."""
    limits, gates = evidence.thresholds, evidence.gates
    if not any(gate.gate == "base" for gate in gates):
        raise ValueError("A verdict needs the gate 'base', questions as they were trained, but there is none.")
    names = [gate.name for gate in gates]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Gates must differ in gate, variant or score, but {', '.join(repeated)} is there twice.")
    for gate in gates:
        if (gate.small.threshold, gate.large.threshold, gate.level) != (limits.d, limits.D, limits.level):
            raise ValueError(
                f"{gate.name} was tested with d={gate.small.threshold}, D={gate.large.threshold} and level "
                f"{gate.level}, but the verdict has d={limits.d}, D={limits.D} and level {limits.level}."
            )
        if gate.comparisons != len(gates):
            raise ValueError(
                f"{gate.name} was tested for {gate.comparisons} comparisons, but the verdict has {len(gates)} tests. "
                f"Give gate(..., comparisons={len(gates)})."
            )
    for ability in evidence.retain:
        if ability.share != limits.retain:
            raise ValueError(
                f"{ability.name} was tested with share={ability.share}, but the verdict has {limits.retain}."
            )
