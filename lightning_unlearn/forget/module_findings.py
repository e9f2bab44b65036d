"""Findings of a request about a user's module: three models measured, a verdict, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.forget.module_evidence import (
    outcome_section,
    own_metrics_of,
    own_section,
    relearn,
    relearning_section,
    threshold_section,
)
from lightning_unlearn.forget.module_measures import measure
from lightning_unlearn.forget.module_opening import Opened
from lightning_unlearn.forget.module_verdict import conclude, criteria, headline
from lightning_unlearn.forget.request import Findings
from lightning_unlearn.report.model import JSON, UnlearningReport

__all__ = ["module_findings"]

_RATE = 1e-3  # of the training, where nothing tells it

_LIMITS = [
    "That these tests find no trace does not prove that there is none: a new attack can reopen the question.",
    "Forgetting in the weights deletes no data elsewhere: the raw rows, backups, caches, other checkpoints and models "
    "that were made from this one.",
]
_NO_OWN = "The module's own metrics are missing, since its validation or test fails outside of its own run ({})."
_TERMS = {
    "NLL": "Negative log-likelihood of the label, in nats: 0 is certain, each step of 0.69 halves its probability.",
    "AUC": "Chance that a row to forget is likelier to the model than a row that it never saw. 0.5 tells nothing; "
    "above it the rows are remembered, below it they stand out as removed.",
}


def module_findings(
    opened: Opened,
    models: Mapping[str, LightningModule],
    method: str,
    factor: float,
    accelerator: str,
    subject: Mapping[str, str],
    provenance: Mapping[str, JSON],
) -> Findings:
    """Measure the models and conclude.

    Args:
        opened: What was opened and measured before.
        models: ``before``, ``after`` and, where there is one, ``control``.
        method: Name of the method.
        factor: Learning rate as a share of that of the training.
        accelerator: Device of the module's own validation.
        subject: What was asked, for the top of the report.
        provenance: Hashes beside those of the data.
    """
    seed, asked = opened.seed, opened.asked
    after = measure(models["after"], opened.choice, opened.sets, seed)
    control = measure(models["control"], opened.choice, opened.sets, seed) if "control" in models else None
    curve = None
    if control is not None:
        rate = factor * (opened.rates[0] if opened.rates else _RATE)
        three = (models["after"], models["before"], models["control"])
        curve = relearn(*three, opened.sets["forget"], opened.choice.score, rate, seed)
    own, failure = own_metrics_of(models, opened.split, accelerator)
    found = criteria(opened.before, after, control, curve, asked.whole_class, opened.thresholds)
    verdict = headline(conclude(found, opened.knew, control is not None), found)
    sections = [
        threshold_section(found),
        outcome_section(opened.before, after, control, seed),
        *([relearning_section(curve)] if curve is not None else []),
        own_section(own["before"], own["after"], own.get("control")),
    ]
    thresholds: dict[str, Any] = opened.thresholds.as_dict()
    report = UnlearningReport(
        title=f"{opened.opener.module.rpartition(':')[2]} and {asked}, by {method}",
        headline=verdict,
        sections=[section for section in sections if section.parts],
        subject=dict(subject),
        provenance={
            "checkpoint": sha256(opened.checkpoint),
            "training set": opened.fingerprint,
            "seed": seed,
            "score": opened.choice.path,
            "thresholds": thresholds,
            **provenance,
        },
        limits=[*_LIMITS, *opened.notes, *([_NO_OWN.format(failure)] if failure else [])],
        terms=_TERMS,
    )
    met = [[c.kind, c.name, c.threshold, c.measured, c.outcome] for c in found]
    entry = {"verdict": verdict.word, "headline": verdict.summary, "criteria": met, "thresholds": thresholds}
    return Findings(report, entry)
