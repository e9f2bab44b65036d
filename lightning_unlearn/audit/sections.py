"""Sections of the report of an audit, from its findings."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_unlearn.audit.changes import WeightChanges
from lightning_unlearn.audit.collect import ROWS
from lightning_unlearn.audit.findings import MEMBERSHIP, SCORES, Findings
from lightning_unlearn.audit.gates import GATES, Degeneration, GateResult, Utility
from lightning_unlearn.core.intervals import Interval as MeanWithInterval
from lightning_unlearn.core.intervals import bootstrap_mean
from lightning_unlearn.functional.language.privacy import s_mia
from lightning_unlearn.language.metrics.forget_quality import forget_quality
from lightning_unlearn.report.sections import (
    Anchors,
    Cell,
    Curve,
    ExampleRow,
    Examples,
    Interval,
    Measurement,
    Outcome,
    Part,
    Section,
    Series,
    Table,
    Text,
)

__all__ = ["sections_of"]

_WEIGHTS = ("int", "nf4", "fp4", "prun", "relearn")
"""How the names of attacks on weights begin."""
_LEVEL = 0.95
_SHOWN = 5  # paired answers of a set
_LIKELIHOODS = {
    "probability": ("probability of the answer", "geometric mean per token"),
    "exact_memorization": ("exact memorization", "share of tokens"),
}


def sections_of(
    findings: Findings, request: Mapping[str, Cell], provenance: Mapping[str, Cell], changes: WeightChanges | str
) -> list[Section]:
    """The evidence in the order of the assessment framework, nothing left out: what was not run says why.

    Args:
        findings: The findings.
        request: Names and values of what was asked.
        provenance: Names and values of how it was measured.
        changes: What the run changed in the weights, or why that is not known.
    """
    return [
        Section("request", "Request", [Table("What was asked", [], [[*pair] for pair in request.items()])]),
        Section(
            "provenance", "Provenance", [Table("How it was measured", [], [[*pair] for pair in provenance.items()])]
        ),
        _interaction(changes),
        _effectiveness(findings),
        _hard(findings),
        _retraining(findings),
        _privacy(findings),
        _robustness(findings),
        _utility(findings),
        _quality(findings),
        _efficiency(findings),
        _scale(findings),
        _summary(findings),
    ]


def _effectiveness(findings: Findings) -> Section:
    """Plain questions to the forget rows."""
    parts: list[Part] = [_gate_part(findings, gate) for gate in _gates(findings, "base")]
    for key, score in SCORES.items():
        parts.append(_row_part(findings, "forget", key, score, "strict" if key == "strength" else "whole words"))
    parts += [_row_part(findings, "forget", key, *names) for key, names in _LIKELIHOODS.items()]
    parts.append(_examples(findings, "forget"))
    note = "Questions as they were trained. The gate compares all models row by row; kappa 0 is as if never seen."
    return Section("effectiveness", "Effectiveness: plain questions", parts, note)


def _hard(findings: Findings) -> Section:
    """The same rows in other words and under prompts."""
    parts: list[Part] = [_gate_part(findings, gate) for gate in _gates(findings, "paraphrase")]
    prompts = [result for result in findings.others if not result.variant and not result.gate.startswith(_WEIGHTS)]
    parts += [_gate_part(findings, gate, decides=False) for gate in prompts]
    parts += _not_run(findings, ("paraphrase", "prompts"))
    return Section("hard", "Effectiveness: other words and prompts", parts)


def _retraining(findings: Findings) -> Section:
    control = findings.verdict.evidence.control
    if control not in ("retrained", "base"):
        reason = "there is no control model: membership and likelihoods are relative to the original alone"
        return Section("retraining", "Against retraining", [_reason("distance to retraining", reason)])
    parts: list[Part] = []
    for key, (name, variant) in {**_LIKELIHOODS, "strength": ("extraction strength", "strict")}.items():
        ours, theirs = (torch.tensor(findings.column(role, "forget", key)) for role in ("unlearned", "control"))
        gap = bootstrap_mean(ours - theirs)
        parts.append(_measured(f"{name}, difference to the control", gap, len(ours), variant=variant))
    truth = [findings.rows(role)["sets"]["forget"].get("truth_ratio") for role in ("unlearned", "control")]
    found = forget_quality(*map(torch.tensor, truth)) if all(truth) else None
    if found is None:
        parts.append(_reason("forget quality", "the forget rows have no perturbed_answer"))
    else:
        variant = f"p of a KS test with D = {found.statistic:.3f}"
        parts.append(Measurement("forget quality", found.p_value, n=found.n, variant=variant))
    return Section("retraining", "Against retraining", parts)


def _privacy(findings: Findings) -> Section:
    if not findings.membership:
        reason = "needs rows like the forget rows that no model was trained on (never_seen)"
        return Section("privacy", "Privacy", [_reason(f"membership inference, {name}", reason) for name in MEMBERSHIP])
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
                Interval(area.low, area.high, _LEVEL, "DeLong"),
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
    parts.append(Table("True-positive rates", columns, rates, "0 rows allowed: too few never-seen rows for this rate."))
    note = (
        "Areas near 1 mean that forget rows are told from rows never seen. Never-seen rows are not drawn from the same "
        "source, so 0.5 is not the target: the control's area is. A low area is no proof, since other attacks may be "
        "stronger."
    )
    return Section("privacy", "Privacy", parts, note)


def _robustness(findings: Findings) -> Section:
    names = [name for name in GATES if name not in ("base", "paraphrase")]
    parts: list[Part] = [_gate_part(findings, gate) for name in names for gate in _gates(findings, name)]
    parts += [_gate_part(findings, g, decides=False) for g in findings.others if g.gate.startswith(_WEIGHTS)]
    parts += _not_run(findings, names)
    parts += _curves(findings)
    note = "Each stress is put on all models alike: kappa compares the stressed model with the stressed others."
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
        if "control" not in details and None not in details["unlearned"]["never_seen"]:
            seen = details["unlearned"]
            series.append(Series("rows never seen, unlearned model", seen["steps"], seen["never_seen"], role="control"))
        taught = details["unlearned"]["taught_tokens"]
        parts.append(
            Curve(
                f"Relearning: {attack.name}",
                "optimizer updates",
                "extraction strength of the rows that were not taught",
                series,
                unit="share",
                note=f"{taught} tokens were taught. Only what is above the control's curve is recovery.",
            )
        )
    return parts


def _utility(findings: Findings) -> Section:
    parts: list[Part] = [_utility_part(part, findings) for part in findings.utility]
    evidence = findings.verdict.evidence
    texts = {role: findings.rows(role)["perplexity"] for role in findings.collected.outcomes}
    if evidence.perplexity is None:
        parts.append(_reason("perplexity of neutral texts", "there are none (neutral.txt)"))
    else:
        limit = evidence.thresholds.perplexity
        parts.append(
            Measurement(
                "perplexity of neutral texts",
                texts["unlearned"],
                better="lower",
                anchors=Anchors(original=texts["original"], control=texts.get("control")),
                outcome="fail" if evidence.perplexity > limit else "pass",
                reason=f"at most {limit} times that of the {findings.reference} model",
            )
        )
    parts.append(_reason("general benchmarks", "run them with lm-eval, see lightning_unlearn.language.metrics.general"))
    parts += [_examples(findings, name) for name in _kept(findings)]
    return Section("utility", "Utility: what was to be kept", parts)


def _quality(findings: Findings) -> Section:
    parts: list[Part] = [_rate_part(rate, findings) for rate in findings.quality]
    parts.append(_row_part(findings, "forget", "refusal", "refusals to forget rows", "regular expressions", better=""))
    parts.append(_row_part(findings, "forget", "words", "words of an answer to forget rows", better="", unit="words"))
    parts.append(_reason("gibberish", "needs a classifier, see OutputQuality(clean=TextClassifier(...))"))
    note = "Repeated: at least half of the 4-grams of an answer occur in it before."
    return Section("quality", "Output quality", parts, note)


def _efficiency(findings: Findings) -> Section:
    outcomes = findings.collected.outcomes
    names = [ROWS, *(attack.name for attack in findings.collected.plan.attacks)]
    rows = [[name, *(round(outcomes[role][name]["seconds"], 2) for role in outcomes)] for name in names]
    total = ["all", *(round(sum(part["seconds"] for part in outcomes[role].values()), 2) for role in outcomes)]
    table = Table("Seconds of the audit", ["part", *outcomes], [*rows, total], "Of the run that measured the part.")
    facts = findings.collected.facts["unlearned"]
    return Section(
        "efficiency",
        "Efficiency",
        [
            Measurement("parameters", facts["parameters"], unit="parameters"),
            table,
            _reason("cost of unlearning", "an audit does not see the run; its own report has time and memory"),
        ],
    )


def _interaction(changes: WeightChanges | str) -> Section:
    names = "share of weights that changed", "relative length of the change"
    title = "Data and weights"
    if isinstance(changes, str):
        return Section("interaction", title, [_reason(name, changes) for name in names])
    n, values = changes.parameters, (changes.share, changes.relative)
    units = "share", ""  # a change of some hundredths of a percent
    parts: list[Part] = [
        Measurement(name, value, n=n, unit=unit) for name, value, unit in zip(names, values, units, strict=True)
    ]
    rows: list[list[Cell]] = [[layer, *pair] for layer, pair in changes.layers.items()]
    parts.append(Table("By decoder layer", ["layer", "share changed", "relative length"], rows))
    return Section("interaction", title, parts)


def _scale(findings: Findings) -> Section:
    reason = "one request was audited; audit the models after each request, and put their reports into `compare`"
    return Section("scale", "Scale and further requests", [_reason("sequential requests", reason)])


def _summary(findings: Findings) -> Section:
    verdict = findings.verdict
    rows = [
        [
            GATES.get(gate.gate, gate.gate),
            gate.variant,
            gate.score,
            gate.original,
            gate.control,
            gate.unlearned,
            gate.kappa,
            gate.kappa_lower,
            gate.kappa_upper,
            gate.n,
            verdict.not_run.get(gate.name) or _state(gate),
        ]
        for gate in verdict.evidence.gates
    ]
    columns = ["test", "variant", "score", "original", "control", "unlearned", "kappa", "low", "high", "n", "outcome"]
    parts: list[Part] = [Table("All tests of the verdict", columns, rows)]
    if verdict.notes:
        parts.append(Text("", "Notes", list(verdict.notes)))
    return Section("summary", "Summary", parts)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _gates(findings: Findings, name: str) -> list[GateResult]:
    return [gate for gate in findings.verdict.evidence.gates if gate.gate == name]


def _state(gate: GateResult) -> str:
    if gate.passed:
        return "passed"
    return "known" if gate.known else "recovers" if gate.recovers else "undecided"


def _gate_part(findings: Findings, gate: GateResult, decides: bool = True) -> Measurement:
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
    reason = f"at most {thresholds.d} is to be established" if decides else "does not enter the verdict"
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


def _row_part(
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
    return _measured(label, mean, len(values["unlearned"]), variant, better, unit, anchors)


def _measured(
    name: str,
    mean: MeanWithInterval,
    n: int,
    variant: str = "",
    better: str = "",
    unit: str = "",
    anchors: Anchors | None = None,
) -> Measurement:
    value, low, high = mean
    interval = Interval(low, high, _LEVEL, "bootstrap over rows")
    return Measurement(name, value, interval, n, unit, variant, better, anchors or Anchors())  # type: ignore[arg-type]


def _utility_part(part: Utility, findings: Findings) -> Measurement:
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


def _rate_part(part: Degeneration, findings: Findings) -> Measurement:
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


def _reason(name: str, reason: str) -> Measurement:
    return Measurement(name, None, outcome="not run", reason=reason)


def _not_run(findings: Findings, names: object) -> list[Part]:
    """Gates and attacks that were not run, and why."""
    why = {**findings.collected.plan.not_run, **findings.verdict.not_run}
    return [
        _reason(f"kappa: {GATES.get(name, name)}", why[name])
        for name in names  # type: ignore[attr-defined]
        if name in why
    ]


def _examples(findings: Findings, name: str) -> Examples:
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


def _kept(findings: Findings) -> list[str]:
    return [name for name in findings.rows("unlearned")["sets"] if name not in ("forget", "never_seen")]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
