"""Rules of the verdict: the first that holds decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lightning_unlearn.audit.evidence import Case, reference_of
from lightning_unlearn.audit.gates import GATES, GateResult

__all__ = ["RULES", "remarks"]

Rule: TypeAlias = Callable[[Case], "dict[str, Any] | None"]


def _no_verdict(case: Case) -> dict[str, Any] | None:
    if case.evidence.faults:
        reason = "; ".join(case.evidence.faults)
    elif not case.base:
        gaps = ", ".join(f"{gate.score} {gate.gap:.2f}" for gate in case.evidence.gates if gate.gate == "base")
        knows = "more of these rows than the control" if case.evidence.control != "none" else "anything of these rows"
        reason = (
            f"the original model knows hardly {knows}, so there was nothing to forget, or "
            f"the questions do not show it (difference of the scores: {gaps}; at least "
            f"{case.evidence.thresholds.gap:.2f} is needed)"
        )
    else:
        return None
    return {
        "name": "no verdict",
        "headline": f"No verdict: {reason}.",
        "action": "This audit does not support an answer to the request. Fix the problem named above, and audit again.",
    }


def _damaged(case: Case) -> dict[str, Any] | None:
    limits, anchor, found = case.evidence.thresholds, reference_of(case.evidence.control), []
    for ability in case.evidence.retain:
        if ability.upper < 0:
            found.append(f"{ability.name} is at {ability.unlearned:.2f}, the {anchor} at {ability.control:.2f}")
    for rate in case.evidence.quality:
        if rate.lower > limits.degenerate:
            found.append(
                f"{rate.unlearned:.0%} of the answers are {rate.name}, against {rate.control:.0%} of the {anchor}'s"
            )
    if case.evidence.perplexity is not None and case.evidence.perplexity > limits.perplexity:
        found.append(f"the perplexity of neutral text is {case.evidence.perplexity:.1f} times the {anchor}'s")
    if not found:
        return None
    knows = [gate for gate in case.run if gate.recovers or (gate.gate == "base" and gate.known)]
    also = f" Even so, knowledge of the rows is left, as shown by {_listed(knows)}." if knows else ""
    return {
        "name": "damaged",
        "headline": f"Damaged: the model has lost abilities that it was to keep: {'; '.join(found)}.{also}",
        "action": "Do not release this model, and do not record the request as carried out with it: a broken model "
        "that gives no answers proves nothing. Unlearn again with a stronger retain term or fewer steps, and audit "
        "again.",
    }


def _not_forgotten(case: Case) -> dict[str, Any] | None:
    known = [gate for gate in case.base if gate.known]
    if not known:
        return None
    return {
        "name": "not forgotten",
        "headline": f"Not forgotten: the model still knows the rows, as shown by {_listed(known)}.",
        "action": "Do not record the request as carried out. Unlearn further or retrain, and audit again.",
    }


def _recoverable(case: Case) -> dict[str, Any] | None:
    found = [gate for gate in case.run if gate.recovers]
    if not found:
        return None
    base = [gate for gate in found if gate.gate == "base"]
    under = [gate for gate in found if gate.gate != "base"]
    if base:
        also = f" More comes back under {_listed(under)}." if under else ""
        return {
            "name": "partly forgotten",
            "headline": f"Partly forgotten: some of the rows are still known, as shown by {_listed(base)}.{also}",
            "action": "Do not record the request as carried out: some of the rows are still there. Unlearn further or "
            "retrain, and audit again.",
        }
    return {
        "name": "suppressed but recoverable",
        "headline": f"Suppressed but recoverable: knowledge of the rows comes back under {_listed(under)}.",
        "action": "Do not record the request as carried out: the rows are hidden, not gone, and anyone who has the "
        "weights can bring them back. Unlearn with a method that withstands this, or retrain, and audit again.",
    }


def _forgotten(case: Case) -> dict[str, Any] | None:
    evidence, limits = case.evidence, case.evidence.thresholds
    if case.unsettled or case.blind_scores or not evidence.retain:
        return None
    outside = evidence.membership is not None and evidence.membership.outside
    mark = " (traceable)" if outside or any(gate.traceable for gate in case.run) else ""
    mark += ", for these rows and phrasings" if case.small else ""
    tests = f"in {len(case.run)} test{'s' if len(case.run) > 1 else ''}"
    if evidence.control == "none":
        return {
            "name": "no trace found, no control",
            "headline": f"No trace found{mark}: {tests} the model shows at most {limits.d:.0%} of what the original "
            "knows about the rows, but there is no control to compare it with.",
            "action": "Record the tests and their results. Without a control, they do not show that the model behaves "
            "as if it had never seen the rows.",
        }
    return {
        "name": "forgotten",
        "headline": f"Forgotten{mark}: {tests} the model is shown to know at most {limits.d:.0%} of what the original "
        "knows about the rows beyond what the control knows.",
        "action": "The request can be recorded as carried out for the weights of this model, together with the tests, "
        "those that were not run, and the limits. This does not cover the rows themselves, backups, indexes, other "
        "copies of the model, or recipients of the data.",
    }


def _undecided(case: Case) -> dict[str, Any]:
    probes = case.evidence.thresholds.probes
    reasons = []
    if case.unsettled:
        reasons.append(f"neither knowledge nor its absence is established by {_listed(case.unsettled)}")
    if case.blind_scores:
        reasons.append(f"by {', '.join(case.blind_scores)}, the original itself hardly shows that it knows the rows")
    if not case.evidence.retain:
        reasons.append("what the model was to keep was not measured, so it may be damaged")
    needs = [gate.needed for gate in case.unsettled]
    needed = max(probes, *(need for need in needs if need is not None)) if needs and None not in needs else None
    ask = f" About {needed} probes would decide." if needed is not None else ""
    return {
        "name": "undecided",
        "headline": f"Undecided: {'; '.join(reasons)}.{ask}",
        "action": "Do not record the request as carried out yet. Measure what is missing, ask more questions about the "
        "rows, for example in other words, and audit again.",
        "needed": needed,
    }


RULES: tuple[Rule, ...] = (_no_verdict, _damaged, _not_forgotten, _recoverable, _forgotten, _undecided)
"""Each gives fields of the verdict, or ``None`` where it does not hold; the last one always holds."""


def remarks(case: Case) -> list[str]:
    """What a reader has to know beside the headline."""
    evidence, found = case.evidence, []
    if case.blind_scores:
        found.append(f"Not used, because the original itself scores low on it: {', '.join(case.blind_scores)}.")
    if len(scores := {gate.score for gate in case.run}) == 1:
        found.append(f"One score alone was measured ({', '.join(scores)}); the rules are designed for two.")
    if traceable := [gate for gate in case.run if gate.traceable]:
        matched = evidence.control == "matched rows"
        less = "about the rows than about rows it never saw" if matched else "than one that never saw the rows"
        found.append(f"Traceable: the model knows less {less}: {_listed(traceable)}.")
    if evidence.membership is not None and evidence.membership.outside:
        found.append(
            f"Traceable: membership inference has an AUC of {evidence.membership.auc:.3f}, outside the control's "
            f"{evidence.membership.control_lower:.3f} to {evidence.membership.control_upper:.3f}."
        )
    if case.small:
        found.append("A small request: its rows are the whole population, and the bounds are over phrasings of them.")
    floors = [gate.noise_floor for gate in case.run if gate.noise_floor is not None]
    if floors and max(map(abs, floors)) > evidence.thresholds.d:
        found.append(f"Two controls differ by a kappa of {max(floors, key=abs):.2f}, more than the threshold d.")
    if evidence.control == "none":
        found.append("Without a control, answers that anyone could guess count as knowledge.")
    if few := [gate.clusters for gate in case.run if gate.clusters and gate.method == "normal"]:
        found.append(f"The rows are about only {max(few)} entities, so the bounds treat rows as independent.")
    return found


def _listed(gates: Sequence[GateResult]) -> str:
    """What was tried, in words, each with the highest kappa found there; of many, those with the highest."""
    ranked = sorted(gates, key=lambda gate: -(gate.kappa or 0.0))
    best = {gate.gate: gate for gate in reversed(ranked)}
    first = sorted(best.values(), key=ranked.index)
    parts = [f"{GATES.get(gate.gate, gate.gate)} (kappa {_kappa(gate)}, {gate.score})" for gate in first[:4]]
    if len(first) > 4:
        parts.append(f"{len(first) - 4} more")
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _kappa(gate: GateResult) -> str:
    if gate.kappa is None:
        return "undefined"
    if gate.kappa_lower is None or gate.kappa_upper is None:
        return f"{gate.kappa:.2f}"
    return f"{gate.kappa:.2f} [{gate.kappa_lower:.2f}, {gate.kappa_upper:.2f}]"
