"""Verdict of an audit, by stated rules from the numbers of its gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from lightning_unlearn.audit.evidence import CONTROLS, Case, Control, Evidence, Membership, Thresholds, blind, check
from lightning_unlearn.audit.gates import GATES, Degeneration, GateResult, Utility
from lightning_unlearn.audit.rules import RULES, remarks
from lightning_unlearn.core.checks import one_of

__all__ = ["RULE", "Verdict", "conclude", "decide"]

RULE = "lu-verdict/3"
"""Version of the rules. It changes with every rule and every sentence, so that old records are known as such."""

KAPPA = {
    True: "Kappa is the share of the original's knowledge of the rows that is left, beyond what the control knows.",
    False: "Kappa is the share of the original's knowledge of the rows that is left.",
}
"""What kappa is, with and without a control, for headlines that quote it."""

LIMITS = (
    "Tests that find no knowledge do not prove that there is none: a new attack can reopen the question.",
    "Bounds and p-values hold for these questions only.",
    "Unlearning in the weights deletes no data elsewhere: raw rows, backups, indexes, caches, other copies.",
)


@dataclass(frozen=True)
class Verdict:
    """What an audit concludes.

    Args:
        name: ``"forgotten"``, ``"suppressed but recoverable"``, ``"partly forgotten"``, ``"not forgotten"``,
            ``"damaged"``, ``"undecided"``, ``"no trace found, no control"`` or ``"no verdict"``.
        headline: The verdict in a sentence or two, with the kind of the control.
        action: What it means for whoever answers the request.
        gates: Names of the gates that were run and could see something.
        not_run: Gates that say nothing, and why.
        notes: What a reader has to know beside the headline.
        needed: Number of probes that would decide an ``"undecided"`` audit; ``None`` where that is not known.
        evidence: All that it was computed from.
        rule: Version of the rules.
        limits: What no verdict of this kind says.
    """

    name: str
    headline: str
    action: str
    gates: tuple[str, ...]
    not_run: dict[str, str]
    notes: tuple[str, ...]
    needed: int | None
    evidence: Evidence
    rule: str = RULE
    limits: tuple[str, ...] = LIMITS

    @property
    def thresholds(self) -> Thresholds:
        """Thresholds of the rules."""
        return self.evidence.thresholds


def decide(
    gates: Sequence[GateResult],
    retain: Sequence[Utility] = (),
    quality: Sequence[Degeneration] = (),
    *,
    control: Control = "retrained",
    perplexity: float | None = None,
    membership: Membership | None = None,
    rows: int | None = None,
    not_run: Mapping[str, str] | None = None,
    faults: Sequence[str] = (),
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Conclude from the results of the gates whether a model has forgotten.

    The verdict is the first of these that holds:

    1. *no verdict*: the audit has a fault, or the original knows no more than the control.
    2. *damaged*: less than 90 % is left of an ability, degenerate answers are 10 points more frequent than the
       reference's, or the perplexity of neutral text is above 1.5 times the reference's. The reference is the retrained
       model, or the original where there is none.
    3. *not forgotten*: ``kappa > D`` is established for plain questions.
    4. *suppressed but recoverable*: ``kappa > d`` is established for some gate, Bonferroni over all tests; for plain
       questions, *partly forgotten*.
    5. *forgotten*: ``kappa <= d`` is established for all of them (intersection-union: each at the full level), with at
       least 30 plain questions, and what was to be kept was measured. Without a control, *no trace found, no control*.
    6. *undecided*.

    Args:
        gates: Results of `gate`, one for each gate, setting and score, each with ``comparisons=len(gates)``.
        retain: Results of `utility`, of the rows to keep and of general abilities.
        quality: Results of `degeneration`.
        control: Kind of the control: ``"retrained"`` without the rows; the ``"base"`` model, never tuned on them;
            ``"matched rows"`` that the models never saw; ``"none"``.
        perplexity: Perplexity of neutral text, divided by the reference's.
        membership: Membership inference.
        rows: Number of rows of the request, where several probes ask for one row.
        not_run: Gates that were not run, and why.
        faults: What makes the audit void, such as files that do not match.
        thresholds: Thresholds of the rules.

    Raises:
        ValueError: If no gate asks plain questions, or a gate has other thresholds or another number of comparisons.

    Example:
        >>> from lightning_unlearn import gate
        >>> decide([gate([1.0] * 40, [0.0] * 40, [1.0] * 40)]).name
        'not forgotten'
    """
    return conclude(
        Evidence(
            gates=tuple(gates),
            retain=tuple(retain),
            quality=tuple(quality),
            control=one_of("control", control, get_args(Control)),
            perplexity=perplexity,
            membership=membership,
            rows=rows,
            not_run=dict(not_run or {}),
            faults=tuple(faults),
            thresholds=thresholds or Thresholds(),
        )
    )


def conclude(evidence: Evidence) -> Verdict:
    """The verdict of some evidence, see `decide`; it depends on nothing else."""
    check(evidence)
    unseen = blind(evidence)
    run = [gate for gate in evidence.gates if gate.name not in unseen]
    tried = {gate.gate for gate in evidence.gates}
    case = Case(evidence, run, sorted({g.score for g in evidence.gates if g.gate == "base" and g.name in unseen}))
    found = next(fields for fields in (rule(case) for rule in RULES) if fields is not None)
    explained = f" {KAPPA[evidence.control != 'none']}" if "(kappa" in found["headline"] else ""
    return Verdict(
        name=found["name"],
        headline=f"{found['headline']}{explained} Control: {CONTROLS[evidence.control]}.",
        action=found["action"],
        gates=tuple(gate.name for gate in run),
        not_run={name: "not run" for name in GATES if name not in tried} | evidence.not_run | unseen,
        notes=tuple(remarks(case)),
        needed=found.get("needed"),
        evidence=evidence,
    )
