"""Harder settings in a report of UnlearnCanvas: attacks, pairs and sequences."""

from __future__ import annotations

import math

from lightning_unlearn.benchmarks.canvas_published import ATTACKED, PAIRS, published_name
from lightning_unlearn.benchmarks.canvas_results import ATTACKS, KINDS, CanvasResults
from lightning_unlearn.benchmarks.canvas_tables import complement, percent
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS, Kind
from lightning_unlearn.diffusion.metrics.canvas_sequence import SequentialErasure
from lightning_unlearn.report.layout import MISSING
from lightning_unlearn.report.sections import Bars, BarSeries, Cell, Curve, Heatmap, Part, Section, Series, Table

__all__ = ["attack_section", "pair_section", "sequence_section"]

WORDS = {"pre_asr": "no attack", "random_asr": "random tokens", "asr": "UnlearnDiffAtk"}


def attack_section(results: CanvasResults) -> Section | None:
    """UA without and with adversarial prompts; ``None`` if nothing was attacked."""
    tables: list[Part] = []
    charts: list[Part] = []
    for kind in KINDS:
        found = {method: results.attack(method, kind) for method in results.methods}
        found = {method: rates for method, rates in found.items() if "asr" in rates}
        if found:
            tables.append(_attack_table(results, kind, found))
            charts.append(_attack_bars(kind, found))
    note = (
        "UA on the attacked prompts is one minus the share in which the judge sees the erased concept. Random tokens "
        "are as many as the attack's, with as many images: what they find is no merit of the attack. In percent, with "
        "95 % Wilson intervals."
    )
    return Section("attack", "Adversarial prompts", [*tables, *charts], note) if tables else None


def _attack_table(results: CanvasResults, kind: Kind, found: dict[str, dict[str, tuple[int, Interval]]]) -> Table:
    rows: list[list[Cell]] = []
    for method, rates in found.items():
        cells = [percent(complement(rates[name][1])) if name in rates else MISSING for name in ATTACKS]
        rows.append([method, rates["asr"][0], *cells])
        row = ATTACKED.get(published_name(method) or "") if results.names == UNLEARN_CANVAS else None
        if row:
            clean, attacked = (getattr(row, f"{kind}_{when}") for when in ("clean", "attacked"))
            rows.append([f"{published_name(method)}, published", None, f"{clean:.1f}", "", f"{attacked:.1f}"])
    heads = [f"UA, {WORDS[name]}" for name in ATTACKS]
    return Table(f"Erased {kind}s, attacked", ["method", "prompts", *heads], rows)


def _attack_bars(kind: Kind, found: dict[str, dict[str, tuple[int, Interval]]]) -> Bars:
    series = []
    for name in ATTACKS:
        rates = [complement(rates[name][1]) if name in rates else Interval(*[math.nan] * 3) for rates in found.values()]
        values, low, high = zip(*rates, strict=True)
        series.append(BarSeries(WORDS[name], values, low, high))
    return Bars(f"UA of erased {kind}s under attack", list(found), "share of prompts", series, "share")


def pair_section(results: CanvasResults) -> Section | None:
    """Erasure of pairs of a style and an object; ``None`` if no pair was erased."""
    rows: list[list[Cell]] = []
    for method, means in results.pair_means.items():
        rows.append([method, len(results.pairs[method]), *map(percent, means.values())])
        row = PAIRS.get(published_name(method) or "") if results.names == UNLEARN_CANVAS else None
        if row:
            rows.append([f"{published_name(method)}, published", None, *(f"{value:.1f}" for value in row)])
    note = (
        "In percent, with 95 % bootstrap intervals over runs, or Wilson's of a single run. An image is right if both "
        "style and object are; the published study does not define it. UA: images of the pair that are not right. SC: "
        "the style with other objects. OC: the object in other styles. UP: other objects in other styles."
    )
    table = Table("Erased pairs", ["method", "runs", "UA ↑", "SC ↑", "OC ↑", "UP ↑"], rows, note)
    return Section("pairs", "Pairs of a style and an object", [table]) if rows else None


def sequence_section(results: CanvasResults) -> Section | None:
    """Erasure of one target after another; ``None`` if no sequence was run."""
    found = results.sequences
    if not found:
        return None
    lines, rows, maps = [], list[list[Cell]](), []
    for method, sequence in found.items():
        steps = list(range(1, len(sequence.targets) + 1))
        lines.append(Series(method, steps, sequence.ra.tolist()))
        worst = int(sequence.rebound.argmax())
        back = float(sequence.rebound[worst])
        last = sequence.ua[:, -1].mean().item()
        cells: list[Cell] = [f"{100 * value:.1f}" for value in (last, sequence.ra[0], sequence.ra[-1])]
        rows.append([method, *cells, f"{100 * back:.1f}", sequence.targets[worst] if back > 0 else "none"])
        maps.append(_sequence_map(method, sequence))
    heads = ["method", "UA at the end ↑", "RA, first step ↑", "RA, last step ↑", "largest rebound ↓", "of"]
    note = (
        "In percent. RA: mean of IRA and CRA over what was not requested yet. Rebound: UA at its best, less at the end."
    )
    table = Table("Sequences", heads, rows, note)
    curve = Curve("Retain accuracy", "requests", "RA", lines, unit="share")
    return Section("sequential", "One request after another", [table, curve, *maps])


def _sequence_map(method: str, sequence: SequentialErasure) -> Heatmap:
    values = [[None if math.isnan(value) else value for value in row] for row in sequence.ua.tolist()]
    steps = [f"{step}. {target}" for step, target in enumerate(sequence.targets, 1)]
    title, targets = f"{method}: UA after each request", list(sequence.targets)
    return Heatmap(title, "erased", "last request", targets, steps, values, unit="share")
