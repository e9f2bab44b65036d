"""Findings of an audit: gates, utility, quality and membership, from what was measured of each model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lightning_unlearn.audit.collect import ROWS, Collected
from lightning_unlearn.audit.data import AuditData
from lightning_unlearn.audit.evidence import Control, Membership, Thresholds, reference_of
from lightning_unlearn.audit.gates import GATES, Degeneration, GateResult, Utility, degeneration, gate, utility
from lightning_unlearn.audit.measures import JSON
from lightning_unlearn.audit.verdict import Verdict, decide
from lightning_unlearn.language.metrics.membership import MembershipResult, membership_inference
from lightning_unlearn.language.probes import Probe

__all__ = ["SCORES", "Findings", "Scores", "findings_of"]

SCORES = {"strength": "extraction strength", "matched": "right answers"}
"""The two scores of every gate, by their names in the parts of an audit."""
MEMBERSHIP = ("loss", "zlib", "min_k", "min_k_plus_plus")
_PRIMARY = "min_k"
_DEGENERATE = ("empty", "repeated")


class Scores(NamedTuple):
    """One score of the forget rows under one attack, on every model.

    Args:
        name: Name of the attack.
        gate: Its gate; ``None`` for evidence that does not enter the verdict.
        score: Name of the score.
        original: On the model before.
        control: On the control; ``None`` without a control model.
        unlearned: On the unlearned model.
        matched: Scores of never-seen rows on the original and the unlearned model, where they are the control.
        clusters: Whom or what each row is about.
    """

    name: str
    gate: str | None
    score: str
    original: list[float]
    control: list[float] | None
    unlearned: list[float]
    matched: tuple[list[float], list[float]] | None
    clusters: list[str]

    def result(self, thresholds: Thresholds, comparisons: int = 1) -> GateResult:
        """The test of these scores."""
        name = self.gate or self.name
        return gate(
            self.original,
            self.control,
            self.unlearned,
            thresholds.d,
            thresholds.D,
            self.clusters,
            thresholds.level,
            comparisons=comparisons,
            name=name,
            score=self.score,
            variant="" if self.name == name else self.name,
            matched=self.matched,
        )


@dataclass(frozen=True)
class Findings:
    """All that follows from what was measured.

    Args:
        collected: What was measured.
        verdict: The verdict.
        others: Tests of attacks that do not enter the verdict.
        membership: By attack, the membership inference on each model; empty without never-seen rows.
        utility: What is left of each set beside the forget set.
        quality: Rates of degenerate answers.
        probes: The rows of each set.
    """

    collected: Collected
    verdict: Verdict
    others: list[GateResult] = field(default_factory=list)
    membership: dict[str, dict[str, MembershipResult]] = field(default_factory=dict)
    utility: list[Utility] = field(default_factory=list)
    quality: list[Degeneration] = field(default_factory=list)
    probes: dict[str, list[Probe]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The model that abilities are compared with."""
        return reference_of(self.verdict.evidence.control)

    def rows(self, role: str) -> JSON:
        """What was measured of every set of a model without an attack."""
        return self.collected.outcomes[role][ROWS]

    def column(self, role: str, name: str, of: str) -> list[float]:
        """A measurement of each row of a set."""
        return self.rows(role)["sets"][name][of]


def findings_of(
    collected: Collected, data: AuditData, control: Control, thresholds: Thresholds | None = None
) -> Findings:
    """Test everything that was measured, and conclude.

    Args:
        collected: What was measured.
        data: The rows.
        control: Kind of the control.
        thresholds: Thresholds of the verdict.
    """
    thresholds = thresholds or Thresholds()
    scores = list(_scores(collected, control))
    gates = [part for part in scores if part.gate is not None]
    results = [part.result(thresholds, len(gates)) for part in gates]
    others = [part.result(thresholds) for part in scores if part.gate is None]
    outcomes = {role: parts[ROWS] for role, parts in collected.outcomes.items()}
    abilities, rates = _utility(outcomes, control, thresholds), _quality(outcomes, control, thresholds)
    found = _membership(outcomes)
    reference, unlearned = outcomes[reference_of(control)]["perplexity"], outcomes["unlearned"]["perplexity"]
    verdict = decide(
        results,
        abilities,
        rates,
        control=control,
        perplexity=unlearned / reference if reference and unlearned else None,
        membership=_primary(found),
        rows=len(data.forget),
        not_run={name: why for name, why in collected.plan.not_run.items() if name in GATES},
        thresholds=thresholds,
    )
    return Findings(collected, verdict, others, found, abilities, rates, data.sets())


def _scores(collected: Collected, control: Control) -> Iterator[Scores]:
    """Every score of every attack, the plain questions first."""
    plan, outcomes = collected.plan, collected.outcomes
    clusters = [probe.entity for probe in plan.probes]
    gates: dict[str, str | None] = {ROWS: "base", **{attack.name: attack.gate for attack in plan.attacks}}
    for name, of in gates.items():
        parts = {role: _part(parts[name], name) for role, parts in outcomes.items()}
        rows = parts["unlearned"]["rows"] or range(len(clusters))
        for key, score in SCORES.items():
            if parts["unlearned"][key] is None:
                continue
            yield Scores(
                "base" if name == ROWS else name,
                of,
                score,
                parts["original"][key],
                parts["control"][key] if "control" in parts else None,
                parts["unlearned"][key],
                _matched(parts, key) if control == "matched rows" else None,
                [clusters[row] for row in rows],
            )


def _part(outcome: JSON, name: str) -> JSON:
    """The scores of a part in one form."""
    if name != ROWS:
        return outcome
    sets = outcome["sets"]
    return {"rows": None, **{key: sets["forget"][key] for key in SCORES}, "never_seen": sets.get("never_seen")}


def _matched(parts: dict[str, JSON], key: str) -> tuple[list[float], list[float]]:
    first, second = (parts[role]["never_seen"][key] for role in ("original", "unlearned"))
    return first, second


def _utility(outcomes: dict[str, JSON], control: Control, thresholds: Thresholds) -> list[Utility]:
    """What is left of the right answers and of the likelihoods of each set that is to be kept."""
    found = []
    reference, unlearned = outcomes[reference_of(control)]["sets"], outcomes["unlearned"]["sets"]
    for name in unlearned:
        if name in ("forget", "never_seen"):
            continue
        for key, score in SCORES.items():
            known = reference[name][key]
            if sum(known) / len(known) >= thresholds.gap:  # of what is not known nothing can be lost
                label = f"{name} ({score})"
                found.append(utility(label, known, unlearned[name][key], thresholds.retain, thresholds.level))
    return found


def _quality(outcomes: dict[str, JSON], control: Control, thresholds: Thresholds) -> list[Degeneration]:
    """Rates of empty and of repeated answers, to forget rows and to all others."""
    found = []
    roles = reference_of(control), "unlearned"
    for label, chosen in {"rows to forget": ("forget",), "rows to keep": _kept(outcomes["unlearned"])}.items():
        for kind in _DEGENERATE:
            before, after = ([x for name in chosen for x in outcomes[role]["sets"][name][kind]] for role in roles)
            found.append(degeneration(f"{kind} ({label})", before, after, level=thresholds.level))
    return found


def _kept(outcome: JSON) -> tuple[str, ...]:
    return tuple(name for name in outcome["sets"] if name not in ("forget", "never_seen"))


def _membership(outcomes: dict[str, JSON]) -> dict[str, dict[str, MembershipResult]]:
    found: dict[str, dict[str, MembershipResult]] = {}
    for attack in MEMBERSHIP:
        for role, outcome in outcomes.items():
            sets = outcome["sets"]
            if "never_seen" in sets:
                forget, holdout = (torch.tensor(sets[name][attack]) for name in ("forget", "never_seen"))
                found.setdefault(attack, {})[role] = membership_inference(forget, holdout)
    return found


def _primary(found: dict[str, dict[str, MembershipResult]]) -> Membership | None:
    """Membership inference for the verdict: only a control model says which area is that of unseen rows."""
    models = found.get(_PRIMARY, {})
    if "control" not in models:
        return None
    area = models["control"].auc
    return Membership(models["unlearned"].auc.value, area.low, area.high)
