"""One self-contained HTML page for a report, and the files of a report."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.core.files import write_text
from lightning_unlearn.report.curves import COLOURS, draw
from lightning_unlearn.report.model import UnlearnReport

__all__ = ["headline", "render", "write_report"]

ANSWERED = "answered correctly"
DIRECTIONS = {"forget": "should get worse", "attack": "should fall"}


def write_report(report: UnlearnReport, folder: str | os.PathLike[str], show_answers: bool = False) -> None:
    """Write ``report.json``, then ``report.html``, into a folder.

    Each file is replaced in one step: after a crash or on a full disk the old file is still whole.

    Args:
        report: The report.
        folder: Where to; made if missing.
        show_answers: Whether the files show the questions and answers of the rows to forget. They would be a new copy
            of what was to go, so by default the files have only the counts, see
            [`hidden`][lightning_unlearn.UnlearnReport.hidden].

    Raises:
        ImportError: If matplotlib or jinja2 is missing; ``report.json`` is written even then.
    """
    report = report if show_answers else report.hidden()
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(Path(folder, "report.json"), text + "\n")
    write_text(Path(folder, "report.html"), render(report))


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

    names = set_names(report)
    claimed = {f"{name}_{measure}" for name in names for measure in ("accuracy", "nll")}
    metrics = report.before.metrics | report.after.metrics
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
        hit=report.after.hit_means or report.before.hit_means or "correct",
        counted=not report.title and answered(report) and known(report, "forget"),
        colours={name: f"var(--set-{i % COLOURS})" for i, name in enumerate(names)},
        directions=DIRECTIONS,
        accuracy=accuracy,
        share=share,
        pairs=pairs,
        curves={measure: draw(report.curves, names, measure) for measure in ("accuracy", "nll")},
        judged=any(example.hit is not None for e in (report.before, report.after) for example in e.examples),
        has_nll=any(f"{name}_nll" in metrics for name in names),
        others=[metric for metric in metrics if metric not in claimed],
    )


def headline(report: UnlearnReport) -> str:
    """Return the title, or say in one sentence what became of the facts that the model knew before."""
    if report.title:
        return report.title
    if not answered(report):
        return f"{report.model} before and after {report.method}."
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


def answered(report: UnlearnReport) -> bool:
    """Whether hits are right answers, so that hits to forget are facts that the model knew."""
    return {report.before.hit_means, report.after.hit_means} <= {ANSWERED, ""}


def set_names(report: UnlearnReport) -> list[str]:
    """Return the names of all sets, ``forget`` and ``retain`` first."""
    evaluations = (report.before, report.after, *report.curves)
    names = [example.set for evaluation in evaluations for example in evaluation.examples]
    metrics = [metric for evaluation in evaluations for metric in evaluation.metrics]
    names += [m.removesuffix(end) for m in metrics for end in ("_accuracy", "_nll") if m.endswith(end)]
    return sorted(dict.fromkeys(names), key=lambda name: {"forget": 0, "retain": 1}.get(name, 2))


def pairs(report: UnlearnReport, name: str) -> list[list[Example | None]]:
    """Return ``[before, after]`` for each input of a set; an input evaluated only once leaves a ``None``."""
    rows: dict[tuple[str, int], list[Example | None]] = {}
    for column, evaluation in enumerate((report.before, report.after)):
        seen: Counter[str] = Counter()
        for example in evaluation.examples:
            if example.set == name:
                rows.setdefault((example.input, seen[example.input]), [None, None])[column] = example
                seen[example.input] += 1
    return list(rows.values())


def counts(evaluation: Evaluation, name: str) -> tuple[int, int] | None:
    """Return hits and judged examples of a set; ``None`` where these are not all that the accuracy is about."""
    hits = [example.hit for example in evaluation.examples if example.set == name and example.hit is not None]
    if not hits:
        return None
    mean = sum(hits) / len(hits)
    complete = math.isclose(mean, evaluation.metrics.get(f"{name}_accuracy", mean), abs_tol=1e-3)
    return (sum(hits), len(hits)) if complete else None


def known(report: UnlearnReport, name: str) -> tuple[int, int] | None:
    """Return how many examples of a set were hits before, and how many of those still are."""
    if not (counts(report.before, name) and counts(report.after, name)):
        return None
    known_before = [after for before, after in pairs(report, name) if before and before.hit]
    return len(known_before), sum(bool(after and after.hit) for after in known_before)


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
