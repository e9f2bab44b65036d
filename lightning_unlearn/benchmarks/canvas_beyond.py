"""Implicit prompts and side effects on neighbours in a report of UnlearnCanvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_unlearn.benchmarks.canvas_results import KINDS, CanvasResults, CanvasRun
from lightning_unlearn.benchmarks.canvas_tables import complement, percent
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.canvas.family_scores import FamilyCounts, FamilyRate, family_rates, overall_score
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.canvas.side_effects import SideEffects, side_effect_rates
from lightning_unlearn.report.layout import MISSING
from lightning_unlearn.report.sections import Cell, Part, Section, Table, Text

__all__ = ["beyond_section"]


FAMILIES = {
    "name": "by the name that was erased",
    "variant": "by its other names",
    "prefix": "with a word glued to the name",
    "free": "inside captions by other names",
    "both": "by an erased and another name",
    "composition": "beside what it was never shown beside",
    "superclass": "not asked for, so that UA tells how often it is absent",
}
EFFECTS = (
    "Near and far: accuracy on the most and the least similar concepts of the kind. Other attribute: accuracy on the "
    "erased concept's prompts of what else was asked for. Excess: loss of accuracy on near concepts, less that on far "
    "ones. Leak: change of the rate at which other prompts show the erased concept. Entropy of what is shown in its "
    "place: 0 is one label, 1 all alike. H: harmonic mean of UA by name, UA of the hardest family, near and other "
    "attribute."
)


def beyond_section(results: CanvasResults) -> Section | None:
    """Implicit prompts and side effects; ``None`` if neither was measured."""
    families, effects = list[Table](), list[Table]()
    for kind in KINDS:
        chosen = {method: results.runs(method, kind) for method in results.methods}
        if asked := {method: having for method, runs in chosen.items() if (having := _having(runs, "families"))}:
            families.append(_family_table(kind, asked))
        if changed := {method: having for method, runs in chosen.items() if (having := _having(runs, "side_effects"))}:
            effects.append(_effect_table(kind, changed))
    if not families and not effects:
        return None
    there = {name for table in families for name in table.columns}
    asked_for = "; ".join(f"{name}: {words}" for name, words in FAMILIES.items() if name in there)
    parts: list[Part] = [*families, *([Text(f"How the concept is asked for. {asked_for}.")] if families else [])]
    parts += [*effects, *([Text(EFFECTS)] if effects else [])]
    note = (
        "Two questions that the published protocol does not ask. In percent; shares have 95 % Wilson intervals, and "
        "changes bootstrap intervals over runs and prompts."
    )
    return Section("beyond", "Implicit prompts and neighbours", parts, note)


def _having(runs: Sequence[CanvasRun], name: str) -> list[CanvasRun]:
    return [run for run in runs if run.record.get(name)]


def _rates(runs: Sequence[CanvasRun]) -> dict[str, FamilyRate]:
    read = [{name: FamilyCounts.from_dict(counts) for name, counts in run.record["families"].items()} for run in runs]
    return family_rates(read)


def _family_table(kind: Kind, found: dict[str, list[CanvasRun]]) -> Table:
    rates = {method: _rates(runs) for method, runs in found.items()}
    names = list(dict.fromkeys(name for of in rates.values() for name in of))
    rows: list[list[Cell]] = []
    for method, of in rates.items():
        cells = [percent(complement(of[name].shown)) if name in of else MISSING for name in names]
        rows.append([method, len(found[method]), *cells])
    return Table(f"UA of erased {kind}s by how they are asked for", ["method", "runs", *names], rows)


def _effect_table(kind: Kind, found: dict[str, list[CanvasRun]]) -> Table:
    rows: list[list[Cell]] = []
    for method, runs in found.items():
        of = side_effect_rates([SideEffects.from_dict(run.record["side_effects"]) for run in runs])
        told = _having(runs, "families")
        overall = f"{100 * overall_score(_rates(told), of.near.value, of.rest.value):.1f}" if told else MISSING
        entropy = MISSING if of.redirect_entropy is None else f"{of.redirect_entropy:.2f}"
        shares: list[Cell] = [percent(x) or MISSING for x in (of.near, of.far, of.rest, of.anchor_share)]
        rows.append([method, len(runs), *shares, _points(of.excess_near), _points(of.leak_in), entropy, overall])
    heads = [
        *("near ↑", "far ↑", "other attribute ↑", "to the anchor"),
        *("excess loss of near ↓", "leak into others ↓", "entropy", "H ↑"),
    ]
    return Table(f"Erased {kind}s, side effects", ["method", "runs", *heads], rows)


def _points(interval: Interval) -> str:
    """A change in percentage points with its interval and signs."""
    value, low, high = (f"{100 * part:+.1f}".replace("-", "−") for part in interval)
    return value if math.isnan(interval.low) else f"{value} [{low},\u00a0{high}]"
