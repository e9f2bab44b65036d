"""Sections of the report of an audit, from its findings."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_unlearn.audit.changes import WeightChanges
from lightning_unlearn.audit.collect import ROWS
from lightning_unlearn.audit.conversation_section import conversation_section
from lightning_unlearn.audit.conversations import Conversations
from lightning_unlearn.audit.findings import Findings
from lightning_unlearn.audit.forgetting_sections import (
    effectiveness,
    hard_questions,
    privacy,
    retraining,
    robustness,
)
from lightning_unlearn.audit.gates import GATES
from lightning_unlearn.audit.section_parts import (
    examples,
    kept_sets,
    left_out,
    outcome_of,
    rate_part,
    row_part,
    utility_part,
)
from lightning_unlearn.report.sections import Anchors, Cell, Measurement, Part, Section, Table, Text

__all__ = ["sections_of"]


def sections_of(
    findings: Findings,
    request: Mapping[str, Cell],
    provenance: Mapping[str, Cell],
    changes: WeightChanges | str,
    conversations: Conversations | None = None,
) -> list[Section]:
    """The evidence in the order of the assessment framework, nothing left out: what was not run says why.

    Args:
        findings: The findings.
        request: Names and values of what was asked.
        provenance: Names and values of how it was measured.
        changes: What the run changed in the weights, or why that is not known.
        conversations: Rated conversations of the models, where the audit has a judge.
    """
    return [
        Section("request", "Request", [Table("What was asked", [], [[*pair] for pair in request.items()])]),
        Section(
            "provenance", "Provenance", [Table("How it was measured", [], [[*pair] for pair in provenance.items()])]
        ),
        _interaction(changes),
        effectiveness(findings),
        hard_questions(findings),
        retraining(findings),
        privacy(findings),
        robustness(findings),
        _utility(findings),
        _quality(findings),
        conversation_section(conversations),
        _efficiency(findings),
        _scale(findings),
        _summary(findings),
    ]


def _utility(findings: Findings) -> Section:
    parts: list[Part] = [utility_part(part, findings) for part in findings.utility]
    evidence = findings.verdict.evidence
    texts = {role: findings.rows(role)["perplexity"] for role in findings.collected.outcomes}
    if evidence.perplexity is None:
        parts.append(left_out("perplexity of neutral texts", "there are no neutral texts (neutral.txt)"))
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
    parts.append(
        left_out("general benchmarks", "run them with lm-eval, see lightning_unlearn.language.metrics.general")
    )
    parts += [examples(findings, name) for name in kept_sets(findings)]
    return Section("utility", "Utility: what the model was to keep", parts)


def _quality(findings: Findings) -> Section:
    parts: list[Part] = [rate_part(rate, findings) for rate in findings.quality]
    parts.append(row_part(findings, "forget", "refusal", "refusals on forget rows", "regular expressions", better=""))
    parts.append(row_part(findings, "forget", "words", "words per answer to forget rows", better="", unit="words"))
    parts.append(left_out("gibberish", "needs a classifier, see OutputQuality(clean=TextClassifier(...))"))
    note = "Repeated: at least half of an answer's 4-grams have occurred earlier in it."
    return Section("quality", "Output quality", parts, note)


def _efficiency(findings: Findings) -> Section:
    outcomes = findings.collected.outcomes
    names = [ROWS, *(attack.name for attack in findings.collected.plan.attacks)]
    rows = [[name, *(round(outcomes[role][name]["seconds"], 2) for role in outcomes)] for name in names]
    total = ["all", *(round(sum(part["seconds"] for part in outcomes[role].values()), 2) for role in outcomes)]
    table = Table(
        "Seconds of the audit", ["part", *outcomes], [*rows, total], "Each time is from the run that measured the part."
    )
    facts = findings.collected.facts["unlearned"]
    return Section(
        "efficiency",
        "Efficiency",
        [
            Measurement("parameters", facts["parameters"], unit="parameters"),
            table,
            left_out(
                "cost of unlearning", "an audit does not see the training run, whose own report has time and memory"
            ),
        ],
    )


def _interaction(changes: WeightChanges | str) -> Section:
    names = "share of weights that changed", "relative length of the change"
    title = "Data and weights"
    if isinstance(changes, str):
        return Section("interaction", title, [left_out(name, changes) for name in names])
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
    return Section("scale", "Scale and further requests", [left_out("sequential requests", reason)])


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
            verdict.not_run.get(gate.name) or outcome_of(gate),
        ]
        for gate in verdict.evidence.gates
    ]
    columns = ["test", "variant", "score", "original", "control", "unlearned", "kappa", "low", "high", "n", "outcome"]
    parts: list[Part] = [Table("All tests of the verdict", columns, rows)]
    if verdict.notes:
        parts.append(Text("", "Notes", list(verdict.notes)))
    return Section("summary", "Summary", parts)
