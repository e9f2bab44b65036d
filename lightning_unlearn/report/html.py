"""The report as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.core.evaluation import Answer, Evaluation
from lightning_unlearn.report.curves import COLOURS, draw

if TYPE_CHECKING:
    from lightning_unlearn.report.model import UnlearnReport

__all__ = ["headline", "render"]


def render(report: UnlearnReport) -> str:
    """Return the page.

    Raises:
        ImportError: If jinja2 or matplotlib is missing.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('report.html needs jinja2 and matplotlib: pip install "lightning-unlearn[report]"') from error

    names = question_sets(report)
    claimed = {f"{name}_{measure}" for name in names for measure in ("accuracy", "nll")}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plain": plain}
    return environment.get_template("report.html.jinja").render(
        report=report,
        headline=headline(report),
        counted=known(report, "forget"),
        colours={name: f"var(--set-{i % COLOURS})" for i, name in enumerate(names)},
        accuracy=accuracy,
        share=share,
        pairs=pairs,
        curves={measure: draw(report.curves, names, measure) for measure in ("accuracy", "nll")},
        others=[metric for metric in report.before.metrics | report.after.metrics if metric not in claimed],
    )


def headline(report: UnlearnReport) -> str:
    """Say in one sentence what became of the facts that the model knew before."""
    forget, retain = known(report, "forget"), known(report, "retain")
    if forget and not forget[0]:
        return f"The model knew none of the facts to forget, even before {report.method}."
    if forget:
        kept = f" and kept {retain[1]} of {retain[0]}" if retain else ""
        return f"{report.method} made the model forget {forget[0] - forget[1]} of {forget[0]} facts{kept}."
    before, after, _ = accuracy(report, "forget")
    if before.endswith("%") and after.endswith("%"):
        return f"{report.method} moved the accuracy on the facts to forget from {before} to {after}."
    return f"What the model knew before and after {report.method}."


def question_sets(report: UnlearnReport) -> list[str]:
    """Return the names of all question sets, ``forget`` and ``retain`` first."""
    evaluations = (report.before, report.after, *report.curves)
    names = [answer.set for evaluation in evaluations for answer in evaluation.answers]
    metrics = [metric for evaluation in evaluations for metric in evaluation.metrics]
    names += [m.removesuffix(end) for m in metrics for end in ("_accuracy", "_nll") if m.endswith(end)]
    return sorted(dict.fromkeys(names), key=lambda name: {"forget": 0, "retain": 1}.get(name, 2))


def pairs(report: UnlearnReport, name: str) -> list[list[Answer | None]]:
    """Return ``[before, after]`` for each question of a set; a question asked only once leaves a ``None``."""
    rows: dict[tuple[str, int], list[Answer | None]] = {}
    for column, evaluation in enumerate((report.before, report.after)):
        seen: Counter[str] = Counter()
        for answer in evaluation.answers:
            if answer.set == name:
                rows.setdefault((answer.question, seen[answer.question]), [None, None])[column] = answer
                seen[answer.question] += 1
    return list(rows.values())


def counts(evaluation: Evaluation, name: str) -> tuple[int, int] | None:
    """Return correct and judged answers of a set; ``None`` where the answers are not all that the accuracy is about."""
    marks = [answer.correct for answer in evaluation.answers if answer.set == name and answer.correct is not None]
    if not marks:
        return None
    mean = sum(marks) / len(marks)
    complete = math.isclose(mean, evaluation.metrics.get(f"{name}_accuracy", mean), abs_tol=1e-3)
    return (sum(marks), len(marks)) if complete else None


def known(report: UnlearnReport, name: str) -> tuple[int, int] | None:
    """Return how many questions of a set were answered correctly before, and how many of those still are."""
    if not (counts(report.before, name) and counts(report.after, name)):
        return None
    known_before = [after for before, after in pairs(report, name) if before and before.correct]
    return len(known_before), sum(bool(after and after.correct) for after in known_before)


def share(evaluation: Evaluation, name: str) -> float | None:
    """Return a set's accuracy, 0 to 1; ``None`` where it was not measured."""
    counted = counts(evaluation, name)
    return evaluation.metrics.get(f"{name}_accuracy", counted[0] / counted[1] if counted else None)


def accuracy(report: UnlearnReport, name: str) -> tuple[str, str, str]:
    """Return a set's accuracy before, after, and the common unit: ``("12", "0", "of 12")`` or ``("99%", "3%", "")``."""
    before, after = counts(report.before, name), counts(report.after, name)
    if before and after and before[1] == after[1]:
        return str(before[0]), str(after[0]), f"of {before[1]}"
    return number(share(report.before, name), ".0%"), number(share(report.after, name), ".0%"), ""


def number(value: float | None, form: str = ".2f") -> str:
    """Format a measurement, which may be missing or not finite."""
    if value is None:
        return "–"
    return format(value, form) if math.isfinite(value) else "not finite"


def plain(value: Any) -> str:
    """Format a setting."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
