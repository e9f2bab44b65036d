"""Sections on forgetting in the report of an audit: questions, retraining, privacy, robustness."""

from __future__ import annotations

import torch

from lightning_unlearn.audit.findings import MEMBERSHIP, SCORES, Findings
from lightning_unlearn.audit.gates import GATES
from lightning_unlearn.audit.section_parts import (
    LEVEL,
    examples,
    gate_part,
    gates_of,
    left_out,
    measured,
    not_run,
    row_part,
)
from lightning_unlearn.core.intervals import bootstrap_mean
from lightning_unlearn.functional.language.privacy import s_mia
from lightning_unlearn.language.metrics.forget_quality import forget_quality
from lightning_unlearn.report.sections import Anchors, Cell, Curve, Interval, Measurement, Part, Section, Series, Table

__all__ = ["effectiveness", "hard_questions", "privacy", "retraining", "robustness"]

_WEIGHTS = ("int", "nf4", "fp4", "prun", "relearn")
"""How the names of attacks on weights begin."""
_LIKELIHOODS = {
    "probability": ("probability of the answer", "geometric mean per token"),
    "exact_memorization": ("exact memorization", "share of tokens"),
}


def effectiveness(findings: Findings) -> Section:
    """Plain questions to the forget rows."""
    parts: list[Part] = [gate_part(findings, gate) for gate in gates_of(findings, "base")]
    for key, score in SCORES.items():
        parts.append(row_part(findings, "forget", key, score, "strict" if key == "strength" else "whole words"))
    parts += [row_part(findings, "forget", key, *names) for key, names in _LIKELIHOODS.items()]
    parts.append(examples(findings, "forget"))
    note = "Questions as they were trained. A gate compares the models row by row; a kappa of 0 means as if never seen."
    return Section("effectiveness", "Effectiveness: plain questions", parts, note)


def hard_questions(findings: Findings) -> Section:
    """The same rows in other words and under prompts."""
    parts: list[Part] = [gate_part(findings, gate) for gate in gates_of(findings, "paraphrase")]
    prompts = [result for result in findings.others if not result.variant and not result.gate.startswith(_WEIGHTS)]
    parts += [gate_part(findings, gate, decides=False) for gate in prompts]
    parts += not_run(findings, ("paraphrase", "prompts"))
    return Section("hard", "Effectiveness: other words and prompts", parts)


def retraining(findings: Findings) -> Section:
    """Distance to a model that never saw the rows."""
    control = findings.verdict.evidence.control
    if control not in ("retrained", "base"):
        reason = "there is no control model: membership and likelihoods are compared with the original only"
        return Section("retraining", "Against retraining", [left_out("distance to retraining", reason)])
    parts: list[Part] = []
    for key, (name, variant) in {**_LIKELIHOODS, "strength": ("extraction strength", "strict")}.items():
        ours, theirs = (torch.tensor(findings.column(role, "forget", key)) for role in ("unlearned", "control"))
        gap = bootstrap_mean(ours - theirs)
        parts.append(measured(f"{name}, difference to the control", gap, len(ours), variant=variant))
    truth = [findings.rows(role)["sets"]["forget"].get("truth_ratio") for role in ("unlearned", "control")]
    found = forget_quality(*map(torch.tensor, truth)) if all(truth) else None
    if found is None:
        parts.append(left_out("forget quality", "the forget rows have no perturbed_answer"))
    else:
        variant = f"p of a KS test with D = {found.statistic:.3f}"
        parts.append(Measurement("forget quality", found.p_value, n=found.n, variant=variant))
    return Section("retraining", "Against retraining", parts)


def privacy(findings: Findings) -> Section:
    """Membership inference on the forget rows."""
    if not findings.membership:
        reason = "needs rows like the forget rows that no model was trained on (never_seen)"
        return Section("privacy", "Privacy", [left_out(f"membership inference, {name}", reason) for name in MEMBERSHIP])
    parts: list[Part] = []
    for name, models in findings.membership.items():
        area, n = models["unlearned"].auc, models["unlearned"].n_forget
        anchors = Anchors(
            original=models["original"].auc.value,
            control=models["control"].auc.value if "control" in models else None,
            chance=0.5,
        )
        parts.append(
            Measurement(
                f"membership inference, {name}",
                area.value,
                Interval(area.low, area.high, LEVEL, "DeLong"),
                n,
                variant="AUC",
                better="closer to control",
                anchors=anchors,
            )
        )
        if "control" in models and models["control"].auc.value > 0:
            share = s_mia(area.value, models["control"].auc.value)
            parts.append(Measurement(f"privacy, {name}", share, variant="s_mia", better="higher"))
    rates: list[list[Cell]] = [
        [name, role, rate.fpr, rate.rate.value, rate.rate.low, rate.rate.high, rate.allowed]
        for name, models in findings.membership.items()
        for role, result in models.items()
        for rate in result.tpr
    ]
    columns = ["score", "model", "false-positive rate", "true-positive rate", "low", "high", "rows allowed"]
    parts.append(
        Table("True-positive rates", columns, rates, "0 rows allowed: there are too few never-seen rows for this rate.")
    )
    note = (
        "An area under the curve (AUC) near 1 means that forget rows can be told from rows that were never seen. "
        "Never-seen rows are not drawn from the same source, so the target is the control's area and not 0.5. A low "
        "area is no proof, because other attacks may be stronger."
    )
    return Section("privacy", "Privacy", parts, note)


def robustness(findings: Findings) -> Section:
    """Stresses on weights and answers."""
    names = [name for name in GATES if name not in ("base", "paraphrase")]
    parts: list[Part] = [gate_part(findings, gate) for name in names for gate in gates_of(findings, name)]
    parts += [gate_part(findings, g, decides=False) for g in findings.others if g.gate.startswith(_WEIGHTS)]
    parts += not_run(findings, names)
    parts += _curves(findings)
    note = "Every attack is run on all models alike: kappa compares the attacked model with the attacked others."
    return Section("robustness", "Robustness", parts, note)


def _curves(findings: Findings) -> list[Part]:
    """Relearning curves of all models."""
    parts: list[Part] = []
    outcomes = findings.collected.outcomes
    for attack in findings.collected.plan.attacks:
        details = {role: outcomes[role][attack.name].get("details") or {} for role in outcomes}
        if "steps" not in details["unlearned"]:
            continue
        series = [Series(role, d["steps"], d["strength"], role=role) for role, d in details.items()]  # type: ignore[arg-type]
        note = f"{details['unlearned']['taught_tokens']} tokens were taught. Only what lies above the control's curve "
        note += "has been recovered."
        if "control" not in details and None not in details["unlearned"]["never_seen"]:
            seen = details["unlearned"]
            series.append(Series("never seen", seen["steps"], seen["never_seen"], role="control"))
            note += " The control is the curve never seen: the unlearned model on rows that no model has seen."
        parts.append(
            Curve(
                f"Relearning: {attack.name}",
                "optimizer updates",
                "extraction strength of the rows that were not taught",
                series,
                unit="share",
                note=note,
            )
        )
    return parts
