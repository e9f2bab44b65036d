"""Sections of single methods in a report of UnlearnCanvas: measurements, accuracies, and what replaced a target."""

from __future__ import annotations

import math

import torch

from lightning_unlearn.benchmarks.canvas_results import KINDS, CanvasResults, mean_of
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.metrics.canvas import BASE
from lightning_unlearn.diffusion.metrics.canvas_read_outs import redirects
from lightning_unlearn.report.html import slug
from lightning_unlearn.report.sections import Anchors, Heatmap, Measurement, Part, Section
from lightning_unlearn.report.sections import Interval as Bounds

__all__ = ["bounds", "method_section"]

BOOTSTRAP = "percentile bootstrap over runs"


def bounds(interval: Interval, method: str = BOOTSTRAP) -> Bounds | None:
    """An interval of a report; ``None`` where there is none."""
    return None if math.isnan(interval.low) else Bounds(interval.low, interval.high, method=method)


def method_section(results: CanvasResults, method: str) -> Section:
    """The accuracy matrix of a method, what images of erased concepts show, and all measurements."""
    parts: list[Part] = [_matrix(results, method)]
    parts += [_redirects(results, method, kind) for kind in KINDS if results.runs(method, kind)]
    return Section(f"method-{slug(method)}", method, [*parts, *_measurements(results, method)])


def _measurements(results: CanvasResults, method: str) -> list[Measurement]:
    parts = []
    for kind in KINDS:
        n = len(results.runs(method, kind))
        for name, interval in results.summaries[method].items():
            if not name.startswith(f"{kind}/"):
                continue
            measure, _, rest = name.removeprefix(f"{kind}/").partition("_")
            variant = f"{kind}s, without the target's images" if rest else f"{kind}s"
            before = results.base_summary.get(name)
            parts.append(
                Measurement(
                    *(measure, interval.value, bounds(interval), n, "share"),
                    variant=variant,
                    better="higher",
                    anchors=Anchors(original=before.value if before else None),
                )
            )
        if values := results.values(method, "FID", kind):
            mean = mean_of(values)
            parts.append(Measurement("FID", mean.value, bounds(mean), len(values), variant=f"{kind}s", better="lower"))
    for name, unit, title in (
        ("seconds", "s", "time of a request"),
        ("peak_memory_bytes", "bytes", "peak memory"),
        ("storage_bytes", "bytes", "kept of a model"),
    ):
        if values := results.values(method, name):
            parts.append(Measurement(title, mean_of(values).value, n=len(values), unit=unit, better="lower"))
    return parts


def _matrix(results: CanvasResults, method: str) -> Heatmap:
    matrix = results.mean_matrix(method)
    styles = len(results.names.styles)
    seeds = len(results.matrices[method])
    return Heatmap(
        "Accuracy on each concept",
        "erased",
        "asked for",
        [BASE, *matrix.targets],
        list(matrix.concepts),
        matrix.accuracy.tolist(),
        ["styles"] * styles + ["objects"] * (len(matrix.concepts) - styles),
        [(1 + row, matrix.concepts.index(target)) for row, target in enumerate(matrix.targets)],
        "erased concept: a low accuracy is wanted",
        unit="share",
        note=f"{BASE}: before erasure." + (f" Means over {seeds} seeds." if seeds > 1 else ""),
    )


def _redirects(results: CanvasResults, method: str, kind: Kind) -> Heatmap:
    names = results.names
    labels = names.all_styles if kind == "style" else names.objects
    runs = results.runs(method, kind)
    targets = list(dict.fromkeys(str(run.target) for run in runs))
    rows = []
    for target in targets:
        counts = [redirects(run.scores, target) for run in runs if run.target == target]
        total = torch.tensor([[count[label] for label in labels] for count in counts]).sum(0).double()
        rows.append((total / total.sum()).tolist())
    return Heatmap(
        f"What images of erased {kind}s show",
        "erased",
        "judged as",
        targets,
        list(labels),
        rows,
        marked=[(row, labels.index(target)) for row, target in enumerate(targets)],
        mark_means="still the erased concept",
        unit="share",
        note="Images that all go to one label were redirected; images that scatter may be noise.",
    )
