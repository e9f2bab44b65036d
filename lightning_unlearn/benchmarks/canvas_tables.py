"""Summary of UnlearnCanvas results: tables of the metrics and of the cost, bars, and the trade-off."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_unlearn.audit.compare import pareto
from lightning_unlearn.benchmarks.canvas_published import RESULTS, Erased, published_name
from lightning_unlearn.benchmarks.canvas_results import KINDS, CanvasResults, mean_of
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, UNLEARN_CANVAS, Kind
from lightning_unlearn.report.layout import number
from lightning_unlearn.report.sections import Bars, BarSeries, Cell, Curve, Part, Section, Series, Table

__all__ = [
    "BEFORE",
    "DISTANCES",
    "bars",
    "complement",
    "differences",
    "methods_of",
    "percent",
    "published",
    "summary",
    "trade_off",
]

BEFORE = "before erasure"
"""Name of the row of the model that nothing was erased from."""

MEASURES = ("UA", "IRA", "CRA")
COLUMNS = {"UA": "UA ↑", "IRA": "IRA ↑", "CRA": "CRA ↑", "CRA_without_target": "CRA, other images ↑", "H": "H ↑"}
DISTANCES = {"FID": 1, "KID": 4}
"""Distances of retained images, and their digits."""
PROTOCOL = {"steps": (100, "the number of steps of the sampler"), "guidance": (9.0, "guidance")}
COSTS = {
    "seconds": ("time of a request", "s"),
    "peak_memory_bytes": ("peak memory", "bytes"),
    "storage_bytes": ("kept of a model", "bytes"),
}
"""What a request costs, with its words and unit."""


def percent(interval: Interval | None) -> str:
    """A share in percent with its interval, such as ``"82.1 [75.0, 88.9]"``."""
    if interval is None:
        return ""
    value = f"{100 * interval.value:.1f}"
    return value if math.isnan(interval.low) else f"{value} [{100 * interval.low:.1f},\u00a0{100 * interval.high:.1f}]"


def complement(interval: Interval) -> Interval:
    """One minus a share, with its interval."""
    return Interval(1 - interval.value, 1 - interval.high, 1 - interval.low)


def methods_of(results: CanvasResults, kind: Kind) -> list[str]:
    """The methods with targets of a kind."""
    return [method for method in results.methods if results.runs(method, kind)]


def differences(results: CanvasResults, kind: Kind) -> list[str]:
    """How the setting differs from the published one; published rows are only shown if it does not."""
    found = []
    if results.names != UNLEARN_CANVAS:
        counts = f"{len(results.names.styles)} styles and {len(results.names.objects)} objects"
        return [f"the benchmark has {counts}, and another model"]
    if tuple(results.record["seeds"]) != ANSWER_SEEDS:
        found.append(f"the answer sets have the seeds {', '.join(map(str, results.record['seeds']))}")
    targets = {run.target for runs in results.methods.values() for run in runs if run.target in results.names.of(kind)}
    if len(targets) < len(results.names.of(kind)):
        found.append(f"{len(targets)} of {len(results.names.of(kind))} {kind}s were erased")
    drawn = results.record.get("answers", {})
    for name, (wanted, words) in PROTOCOL.items():
        if drawn.get(name, wanted) != wanted:
            found.append(f"{words} is {drawn[name]} and not {wanted}")
    return found


def published(results: CanvasResults, method: str, kind: Kind) -> Erased | None:
    """The published row of a method, where the setting is the same."""
    name = published_name(method)
    return RESULTS[name] if name and not differences(results, kind) else None


def summary(results: CanvasResults) -> Section:
    """Tables of UA, IRA, CRA, their harmonic mean and FID for each kind of target, and of the cost."""
    parts: list[Part] = [_metrics(results, kind) for kind in KINDS if methods_of(results, kind)]
    if any(results.values(method, name) for method in results.methods for name in COSTS):
        parts.append(_costs(results))
    note = (
        "Shares in percent: means with 95 % bootstrap intervals over runs, a run being a target and a seed. UA: images "
        "of the erased concept in which the judge sees another one. IRA: accuracy on the other concepts of its kind. "
        "CRA: accuracy on the concepts of the other kind; other images are those in which the target was not asked "
        "for. H: harmonic mean of UA, IRA and CRA. FID is of retained images, to be compared within a table."
    )
    return Section("summary", "Summary", parts, note)


def _metrics(results: CanvasResults, kind: Kind) -> Table:
    methods = methods_of(results, kind)
    known = [name for name in COLUMNS if any(f"{kind}/{name}" in results.summaries[method] for method in methods)]
    distances = [name for name in DISTANCES if any(results.values(method, name, kind) for method in methods)]
    empty = [""] * len(distances)
    first = results.base_summary
    rows: list[list[Cell]] = [[BEFORE, None, *(percent(first.get(f"{kind}/{name}")) for name in known), *empty]]
    for method in methods:
        found = results.summaries[method]
        cells = [percent(found.get(f"{kind}/{name}")) for name in known]
        cells += [_distance(results.values(method, name, kind), DISTANCES[name]) for name in distances]
        rows.append([method, len(results.runs(method, kind)), *cells])
        if row := published(results, method, kind):
            shares = {name: f"{100 * value:.1f}" for name, value in row.shares(kind).items()}
            cells = [shares.get(name, "") for name in known]
            rows.append([f"{published_name(method)}, published", len(results.names.of(kind)), *cells, *empty])
    heads = [*(COLUMNS[name] for name in known), *(f"{name} ↓" for name in distances)]
    return Table(f"Erased {kind}s", ["method", "runs", *heads], rows, _note(results, kind))


def _distance(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    value, low, high = (f"{part:.{digits}f}" for part in mean_of(values))
    return value if len(values) == 1 else f"{value} [{low},\u00a0{high}]"


def _note(results: CanvasResults, kind: Kind) -> str:
    if different := differences(results, kind):
        return f"No published row stands beside these, as the setting is another: {', '.join(different)}."
    if any(published(results, method, kind) for method in results.methods):
        return "Published FIDs are left out: they are of other features."
    return ""


def _costs(results: CanvasResults) -> Table:
    rows: list[list[Cell]] = []
    for method in results.methods:
        means = {name: results.values(method, name) for name in COSTS}
        rows.append([method, *(number(_mean(values), COSTS[name][1]) for name, values in means.items())])
        if (row := RESULTS.get(published_name(method) or "")) and not any(differences(results, kind) for kind in KINDS):
            cells = [number(row.seconds, "s"), f"{row.memory_gb:g} GB", f"{row.storage_gb:g} GB"]
            rows.append([f"{published_name(method)}, published", *cells])
    heads = [words for words, _ in COSTS.values()]
    note = "Means over runs, on the machine of this run; preparation of data is not counted."
    return Table("Cost", ["method", *heads], rows, note)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def bars(results: CanvasResults) -> Section:
    """UA, IRA and CRA of all methods as bars, and distances of retained images."""
    parts: list[Part] = []
    for kind in KINDS:
        if methods := methods_of(results, kind):
            found = {BEFORE: results.base_summary, **{method: results.summaries[method] for method in methods}}
            series = [_bars(name, [means[f"{kind}/{name}"] for means in found.values()]) for name in MEASURES]
            note = "Lines are 95 % bootstrap intervals over runs."
            parts.append(Bars(f"Erased {kind}s", list(found), "share of images", series, "share", note))
    for name in DISTANCES:
        if values := {method: there for method in results.methods if (there := results.values(method, name))}:
            series = [_bars(name, list(map(mean_of, values.values())))]
            title = f"{name} of retained images"
            parts.append(Bars(title, list(values), f"{name}, lower is better", series))
    return Section("bars", "Metrics of the methods", parts)


def _bars(name: str, intervals: Sequence[Interval]) -> BarSeries:
    values, low, high = zip(*intervals, strict=True)
    return BarSeries(name, values, low, high)


def trade_off(results: CanvasResults) -> Section:
    """UA against IRA of all methods, with the Pareto front."""
    parts: list[Part] = []
    for kind in KINDS:
        points = {
            method: (results.summaries[method][f"{kind}/UA"].value, results.summaries[method][f"{kind}/IRA"].value)
            for method in methods_of(results, kind)
        }
        if not points:
            continue
        front = pareto(points, "higher", "higher")
        series = [Series(name, [x], [y], role="unlearned") for name, (x, y) in points.items()]
        first = results.base_summary
        series.append(Series(BEFORE, [first[f"{kind}/UA"].value], [first[f"{kind}/IRA"].value], role="original"))
        line = sorted(points[name] for name in front)
        series.append(Series("Pareto front", [x for x, _ in line], [y for _, y in line], role="front"))
        note = f"On the front, no other method is better on one axis and no worse on the other: {', '.join(front)}."
        title = f"Erased {kind}s: UA against IRA"
        parts.append(Curve(title, "UA, higher is better", "IRA, higher is better", series, "scatter", "share", note))
    return Section("trade-off", "Trade-off of erasing and keeping", parts)
