"""Reports of single runs, from the evaluations before, along and after them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import (
    Anchors,
    Better,
    Curve,
    ExampleRow,
    Examples,
    ImageRow,
    Images,
    Measurement,
    Part,
    Section,
    Series,
    Text,
)

__all__ = ["attack_section", "run_report"]

ANSWERED = "answered correctly"
MEASURES = {"accuracy": ("Accuracy", "share"), "nll": ("NLL, nats per answer token", "")}
TERMS = {
    "NLL": "Negative log-likelihood of the expected answer, in nats per answer token. 0 is certain; each step of 0.69 "
    "halves the probability of a token.",
    "forget": "What the model is meant to lose: accuracy should fall and NLL should rise.",
    "attack": "Inputs that attack the model: each hit brings something back.",
}


def run_report(
    method: str,
    model: str,
    before: Evaluation,
    after: Evaluation,
    *,
    curves: Sequence[Evaluation] = (),
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    peak_memory_bytes: int = 0,
    sections: Sequence[Section] = (),
    terms: Mapping[str, str] | None = None,
) -> UnlearningReport:
    """The report of one run: each set before and after it, the curves along it, and the examples.

    Args:
        method: Name of the method.
        model: Name of the model.
        before: The evaluation before the first update.
        after: The evaluation after the last one.
        curves: Evaluations along the run, such as the history of a monitor.
        title: Headline of the page. Default: a sentence made from the evaluations.
        provenance: Seed and hashes.
        settings: Settings of the method and the trainer.
        seconds: Wall-clock time of the training part, in seconds.
        peak_memory_bytes: Peak memory of the training part, in bytes; 0 where it was not measured.
        sections: Further sections, before the examples: images, attacks.
        terms: Further terms and their meaning.

    Example:
        >>> report = run_report("NPO", "tiny", Evaluation(0, {"forget_nll": 0.4}), Evaluation(80, {"forget_nll": 6.0}))
        >>> (
        ...     report.measurement("outcome", "forget", "NLL").anchors.original,
        ...     report.measurement("outcome", "forget").value,
        ... )
        (0.4, 6.0)
    """
    evaluations = (before, after, *curves)
    names = set_names(evaluations)
    hit = after.hit_means or before.hit_means or "correct"
    outcome = Section("outcome", "Before and after", _outcome(before, after, names, hit))
    along = Section("curves", "During the run", _curves(curves, names))
    examples = Section("examples", "Examples", _examples(before, after, names, hit))
    others = Section("measures", "Other measures", _others(before, after, names))
    cost = Section("efficiency", "Efficiency", _cost(seconds, peak_memory_bytes))
    shown = [section for section in (outcome, along, *sections, examples, others, cost) if section.parts]
    meanings = (
        {hit: "The accuracy of a set is the share of its examples for which this holds."} if hit != "correct" else {}
    )
    known = {name: text for name, text in TERMS.items() if name in names or (name == "NLL" and _any_nll(evaluations))}
    return UnlearningReport(
        title=title or sentence(method, model, before, after),
        subject={"method": method, "model": model, "training steps": after.step - before.step},
        sections=shown,
        provenance={**(provenance or {}), **({"settings": dict(settings)} if settings else {})},
        terms={**meanings, **known, **(terms or {})},
    )


def attack_section(name: str, summary: str, evaluation: Evaluation, images: Sequence[str] = ()) -> Section:
    """The section of an attack on the model after a run.

    Args:
        name: Name of the attack, such as ``"UnlearnDiffAtk"``.
        summary: The outcome in a sentence or two.
        evaluation: The rates, and an example for each attacked input: ``output`` is the input that the attack found,
            or ``input`` again where the model needed no attack.
        images: An image for each example, as data URIs; none for a model without images.
    """
    rates: list[Part] = [
        Measurement(metric, value, n=len(evaluation.examples) or None, unit="share", better="lower")
        for metric, value in evaluation.metrics.items()
    ]
    found = evaluation.examples
    shown: list[Part] = []
    if images:
        captions = [f"{example.output}\n{_outcome_of(example)}" for example in found]
        row = ImageRow("", list(images), captions, [example.hit for example in found])
        shown = [Images("What the model draws from the prompts that the attack found", [], [row])]
    elif found:
        rows = [ExampleRow(e.set, e.input, e.expected, [f"{e.output}\n{_outcome_of(e)}"], [e.hit]) for e in found]
        shown = [Examples("Attacked inputs", ["found by the attack"], rows, evaluation.hit_means or "came back")]
    key = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return Section(f"attack-{key}", f"Under attack: {name}", [Text(summary), *rates, *shown])


def _outcome_of(example: Example) -> str:
    if not example.hit:
        return "stays erased"
    return "came back" if example.output != example.input else "shows it without an attack"


# ---- what a run changed ----------------------------------------------------------------------------------------------


def sentence(method: str, model: str, before: Evaluation, after: Evaluation) -> str:
    """Say in one sentence what became of the facts that the model knew before."""
    if not {before.hit_means, after.hit_means} <= {ANSWERED, ""}:
        return f"{model} before and after {method}."
    forget, retain = known(before, after, "forget"), known(before, after, "retain")
    if forget and not forget[0]:
        return f"The model knew none of the facts to forget, even before {method}."
    if forget:
        kept = f" and kept {retain[1]} of {retain[0]}" if retain else ""
        return f"{method} made the model forget {forget[0] - forget[1]} of {forget[0]} facts{kept}."
    shares = [share(evaluation, "forget") for evaluation in (before, after)]
    if all(value is not None and math.isfinite(value) for value in shares):
        return f"{method} moved the accuracy on the facts to forget from {shares[0]:.0%} to {shares[1]:.0%}."
    return f"What the model knew before and after {method}."


def set_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """The names of all sets, ``forget`` and ``retain`` first."""
    names = [example.set for evaluation in evaluations for example in evaluation.examples]
    metrics = [metric for evaluation in evaluations for metric in evaluation.metrics]
    names += [m.removesuffix(f"_{end}") for m in metrics for end in MEASURES if m.endswith(f"_{end}")]
    return sorted(dict.fromkeys(names), key=lambda name: {"forget": 0, "retain": 1}.get(name, 2))


def pairs(before: Evaluation, after: Evaluation, name: str) -> list[list[Example | None]]:
    """``[before, after]`` for each input of a set; an input evaluated only once leaves a ``None``."""
    rows: dict[tuple[str, int], list[Example | None]] = {}
    for column, evaluation in enumerate((before, after)):
        seen: Counter[str] = Counter()
        for example in evaluation.examples:
            if example.set == name:
                rows.setdefault((example.input, seen[example.input]), [None, None])[column] = example
                seen[example.input] += 1
    return list(rows.values())


def counts(evaluation: Evaluation, name: str) -> tuple[int, int] | None:
    """Hits and judged examples of a set; ``None`` where these are not all that the accuracy is about."""
    hits = [example.hit for example in evaluation.examples if example.set == name and example.hit is not None]
    if not hits:
        return None
    mean = sum(hits) / len(hits)
    complete = math.isclose(mean, evaluation.metrics.get(f"{name}_accuracy", mean), abs_tol=1e-3)
    return (sum(hits), len(hits)) if complete else None


def known(before: Evaluation, after: Evaluation, name: str) -> tuple[int, int] | None:
    """How many examples of a set were hits before, and how many of those still are."""
    if not (counts(before, name) and counts(after, name)):
        return None
    known_before = [new for old, new in pairs(before, after, name) if old and old.hit]
    return len(known_before), sum(bool(new and new.hit) for new in known_before)


def share(evaluation: Evaluation, name: str) -> float | None:
    """A set's accuracy, 0 to 1; ``None`` where it was not measured."""
    counted = counts(evaluation, name)
    return evaluation.metrics.get(f"{name}_accuracy", counted[0] / counted[1] if counted else None)


def _outcome(before: Evaluation, after: Evaluation, names: Sequence[str], hit: str) -> list[Part]:
    parts: list[Part] = []
    for name in names:
        old, new = counts(before, name), counts(after, name)
        falls: Better = "lower" if name in ("forget", "attack") else "higher"
        if old and new and old[1] == new[1]:
            anchors = Anchors(original=old[0])
            parts.append(Measurement(name, new[0], None, new[1], "rows", hit, falls, anchors))
        elif share(before, name) is not None or share(after, name) is not None:
            parts.append(_change(name, share(before, name), share(after, name), hit, "share", falls))
        nll = f"{name}_nll"
        if nll in before.metrics or nll in after.metrics:
            rises: Better = "higher" if name in ("forget", "attack") else "lower"
            parts.append(_change(name, before.metrics.get(nll), after.metrics.get(nll), "NLL", "nats", rises))
    return parts


def _change(name: str, old: float | None, new: float | None, variant: str, unit: str, better: Better) -> Measurement:
    reason = "not measured after the run" if new is None else ""
    return Measurement(name, new, None, None, unit, variant, better, Anchors(original=old), reason=reason)


def _curves(curves: Sequence[Evaluation], names: Sequence[str]) -> list[Part]:
    parts: list[Part] = []
    for measure, (title, unit) in MEASURES.items():
        steps = [float(evaluation.step) for evaluation in curves]
        values = {name: [evaluation.metrics.get(f"{name}_{measure}") for evaluation in curves] for name in names}
        series = [Series(name, steps, y) for name, y in values.items() if any(v is not None for v in y)]
        if series:
            note = f"{title} by training step, one line for each set."
            parts.append(Curve(title, "training step", title, series, "line", unit, note))
    return parts


def _examples(before: Evaluation, after: Evaluation, names: Sequence[str], hit: str) -> list[Part]:
    parts: list[Part] = []
    for name in names:
        rows = []
        for old, new in pairs(before, after, name):
            one = old or new
            assert one is not None
            outputs = [None if example is None else example.output for example in (old, new)]
            hits = [None if example is None else example.hit for example in (old, new)]
            rows.append(ExampleRow(name, one.input, one.expected, outputs, hits))
        if rows:
            parts.append(Examples(name, ["before", "after"], rows, hit))
    return parts


def _others(before: Evaluation, after: Evaluation, names: Sequence[str]) -> list[Part]:
    claimed = {f"{name}_{measure}" for name in names for measure in MEASURES}
    metrics = [metric for metric in before.metrics | after.metrics if metric not in claimed]
    return [_change(m, before.metrics.get(m), after.metrics.get(m), "", "", "") for m in metrics]


def _cost(seconds: float | None, peak_memory_bytes: int) -> list[Part]:
    parts: list[Part] = []
    if seconds is not None:
        parts.append(Measurement("training time", seconds, unit="s", better="lower"))
    if peak_memory_bytes:
        parts.append(Measurement("peak memory", peak_memory_bytes, unit="bytes", better="lower"))
    return parts


def _any_nll(evaluations: Sequence[Evaluation]) -> bool:
    return any(metric.endswith("_nll") for evaluation in evaluations for metric in evaluation.metrics)
