"""Sections of single methods in a report of UnlearnCanvas: measurements, accuracies, and what replaced a target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from lightning_unlearn.benchmarks.canvas_results import KINDS, CanvasResults, mean_of
from lightning_unlearn.benchmarks.canvas_tables import COSTS, DISTANCES
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.metrics.canvas import BASE
from lightning_unlearn.diffusion.metrics.canvas_read_outs import redirects
from lightning_unlearn.report.html import slug
from lightning_unlearn.report.sections import Anchors, Better, Heatmap, Measurement, Part, Section
from lightning_unlearn.report.sections import Interval as Bounds

__all__ = ["method_section"]

BOOTSTRAP, WILSON = "percentile bootstrap over runs", "Wilson"
ATTACKED = {"pre_asr": "share found without attack", "random_asr": "share found by random tokens", "asr": "ASR"}


def method_section(results: CanvasResults, method: str) -> Section:
    """The accuracy matrix of a method, what images of erased concepts show, and all measurements."""
    kinds = [kind for kind in KINDS if results.runs(method, kind)]
    parts: list[Part] = [_matrix(results, method), *(_redirects(results, method, kind) for kind in kinds)]
    for kind in kinds:
        parts += [*_shares(results, method, kind), *_distances(results, method, kind), *_attacks(results, method, kind)]
    runs = len(results.pairs.get(method, ()))
    parts += [
        _measured(name, interval, runs, "share", "pairs", "higher", BOOTSTRAP if runs > 1 else WILSON)
        for name, interval in results.pair_means.get(method, {}).items()
    ]
    for name, (words, unit) in COSTS.items():
        if values := results.values(method, name):
            parts.append(_measured(words, mean_of(values), len(values), unit, better="lower"))
    return Section(f"method-{slug(method)}", method, parts)


def _shares(results: CanvasResults, method: str, kind: Kind) -> Iterator[Measurement]:
    n = len(results.runs(method, kind))
    for key, interval in results.summaries[method].items():
        if key.startswith(f"{kind}/"):
            name, _, without = key.removeprefix(f"{kind}/").partition("_")
            variant = f"{kind}s, without the target's images" if without else f"{kind}s"
            before = results.base_summary.get(key)
            part = _measured(name, interval, n, "share", variant, "higher")
            yield replace(part, anchors=Anchors(original=before.value)) if before else part


def _distances(results: CanvasResults, method: str, kind: Kind) -> Iterator[Measurement]:
    for name in DISTANCES:
        if values := results.values(method, name, kind):
            yield _measured(name, mean_of(values), len(values), "", f"{kind}s", "lower")


def _attacks(results: CanvasResults, method: str, kind: Kind) -> Iterator[Measurement]:
    for name, (n, interval) in results.attack(method, kind).items():
        yield _measured(ATTACKED[name], interval, n, "share", f"{kind}s", "lower", WILSON)


def _measured(
    name: str,
    interval: Interval,
    n: int,
    unit: str,
    variant: str = "",
    better: Better = "",
    method: str = BOOTSTRAP,
) -> Measurement:
    bounds = None if math.isnan(interval.low) else Bounds(interval.low, interval.high, method=method)
    return Measurement(name, interval.value, bounds, n, unit, variant, better)


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
