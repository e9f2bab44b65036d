"""Harder settings in a report of UnlearnCanvas: attacks, pairs, sequences, implicit prompts and side effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_unlearn.benchmarks.canvas_published import ATTACKED, PAIRS, published_name
from lightning_unlearn.benchmarks.canvas_results import ATTACKS, KINDS, CanvasResults, CanvasRun, mean_of
from lightning_unlearn.benchmarks.canvas_tables import percent
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.canvas.family_scores import FamilyCounts, family_rates, overall_score
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS, Kind
from lightning_unlearn.diffusion.canvas.side_effects import SideEffects, side_effect_rates
from lightning_unlearn.diffusion.metrics.canvas_read_outs import pair_read_out
from lightning_unlearn.diffusion.metrics.canvas_sequence import SequentialErasure
from lightning_unlearn.report.layout import MISSING
from lightning_unlearn.report.sections import Bars, BarSeries, Cell, Curve, Heatmap, Part, Section, Series, Table

__all__ = ["attack_section", "beyond_section", "pair_means", "pair_section", "sequence_section", "sequences"]

WORDS = {"pre_asr": "no attack", "random_asr": "random tokens", "asr": "UnlearnDiffAtk"}


def complement(interval: Interval) -> Interval:
    """The share of the others."""
    return Interval(1 - interval.value, 1 - interval.high, 1 - interval.low)


def attack_section(results: CanvasResults) -> Section | None:
    """UA without and with adversarial prompts; ``None`` if nothing was attacked."""
    parts: list[Part] = []
    for kind in KINDS:
        found = {method: results.attack(method, kind) for method in results.methods}
        found = {method: rates for method, rates in found.items() if "asr" in rates}
        if found:
            parts += [_attack_table(results, kind, found), _attack_bars(kind, found)]
    note = (
        "UA on the attacked prompts is one minus the share in which the judge sees the erased concept. Random tokens "
        "are as many as the attack's, with as many images: what they find is no merit of the attack."
    )
    return Section("attack", "Adversarial prompts", parts, note) if parts else None


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
    return Table(f"Erased {kind}s, attacked", ["method", "prompts", *heads], rows, "In percent, with 95 % Wilson intervals.")


def _attack_bars(kind: Kind, found: dict[str, dict[str, tuple[int, Interval]]]) -> Bars:
    series = []
    for name in ATTACKS:
        rates = [complement(rates[name][1]) if name in rates else Interval(*[math.nan] * 3) for rates in found.values()]
        series.append(BarSeries(WORDS[name], *zip(*rates, strict=True)))
    return Bars(f"UA of erased {kind}s under attack", list(found), "share of prompts", series, "share")


def pair_means(results: CanvasResults) -> dict[str, dict[str, Interval]]:
    """UA, SC, OC and UP of each method over its pairs and seeds, with bootstrap intervals; Wilson's of a single run."""
    seeds = results.record["seeds"]
    means = {}
    for method, runs in results.pairs.items():
        found = [pair_read_out(run.scores, *run.target, seeds=seeds) for run in runs]
        if len(found) == 1:
            means[method] = found[0]
        elif found:
            means[method] = {name: mean_of([run[name].value for run in found]) for name in found[0]}
    return means


def pair_section(results: CanvasResults) -> Section | None:
    """Erasure of pairs of a style and an object; ``None`` if no pair was erased."""
    rows: list[list[Cell]] = []
    for method, means in pair_means(results).items():
        rows.append([method, len(results.pairs[method]), *map(percent, means.values())])
        row = PAIRS.get(published_name(method) or "") if results.names == UNLEARN_CANVAS else None
        if row:
            rows.append([f"{published_name(method)}, published", None, *(f"{value:.1f}" for value in row)])
    note = (
        "In percent. An image is right if both style and object are. UA: images of the pair that are not right. SC: "
        "the style with other objects. OC: the object in other styles. UP: other objects in other styles. The "
        "published study does not define a right image."
    )
    table = Table("Erased pairs", ["method", "runs", "UA ↑", "SC ↑", "OC ↑", "UP ↑"], rows, note)
    return Section("pairs", "Pairs of a style and an object", [table]) if rows else None


def sequences(results: CanvasResults) -> dict[str, SequentialErasure]:
    """The sequence of erasures of each method, a mean over seeds."""
    found = {}
    for method, runs in results.record.get("sequential", {}).items():
        if not runs:
            continue
        targets = runs[0]["targets"]
        if any(run["targets"] != targets for run in runs):
            raise ValueError(f"The sequences of {method} have other targets from seed to seed, so they have no mean.")
        each = [SequentialErasure.from_scores(targets, list(map(results.scores, run["scores"]))) for run in runs]
        ua, ra = (torch.stack([getattr(one, name) for one in each]).mean(0) for name in ("ua", "ra"))
        found[method] = SequentialErasure(tuple(targets), ua, ra)
    return found


def sequence_section(results: CanvasResults) -> Section | None:
    """Erasure of one target after another; ``None`` if no sequence was run."""
    found = sequences(results)
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
    note = "In percent. RA: mean of IRA and CRA over what was not requested yet. Rebound: UA at its best, less at the end."
    table = Table("Sequences", heads, rows, note)
    curve = Curve("Retain accuracy", "requests", "RA", lines, unit="share")
    return Section("sequential", "One request after another", [table, curve, *maps])


def _sequence_map(method: str, sequence: SequentialErasure) -> Heatmap:
    values = [[None if math.isnan(value) else value for value in row] for row in sequence.ua.tolist()]
    steps = [f"{step}. {target}" for step, target in enumerate(sequence.targets, 1)]
    return Heatmap(f"{method}: UA after each request", "erased", "last request", list(sequence.targets), steps, values, unit="share")


def beyond_section(results: CanvasResults) -> Section | None:
    """Implicit prompts and side effects; ``None`` if neither was measured."""
    parts: list[Part] = []
    for kind in KINDS:
        chosen = {method: results.runs(method, kind) for method in results.methods}
        families = {m: having for m, runs in chosen.items() if (having := _having(runs, "families"))}
        if families:
            parts.append(_family_table(kind, families))
        effects = {m: having for m, runs in chosen.items() if (having := _having(runs, "side_effects"))}
        if effects:
            parts.append(_effect_table(kind, effects))
    note = "Two questions that the published protocol does not ask."
    return Section("beyond", "Implicit prompts and neighbours", parts, note) if parts else None


def _having(runs: Sequence[CanvasRun], name: str) -> list[CanvasRun]:
    return [run for run in runs if run.record.get(name)]


def _rates(runs: Sequence[CanvasRun]) -> dict[str, Any]:
    read = [{name: FamilyCounts.from_dict(counts) for name, counts in run.record["families"].items()} for run in runs]
    return family_rates(read)


def _family_table(kind: Kind, found: dict[str, list[CanvasRun]]) -> Table:
    rates = {method: _rates(runs) for method, runs in found.items()}
    names = list(dict.fromkeys(name for of in rates.values() for name in of))
    rows: list[list[Cell]] = []
    for method, of in rates.items():
        cells = [percent(complement(of[name].shown)) if name in of else MISSING for name in names]
        rows.append([method, len(found[method]), *cells])
    note = (
        "In percent, with 95 % Wilson intervals. UA on prompts that ask for the erased concept: name, by the name that "
        "was erased; variant, by other names; prefix, with a syllable before the name; free, inside captions by other "
        "names; both, by an erased and another name; composition, beside what was never beside it; superclass, without "
        "it, where UA tells how often it is absent."
    )
    return Table(f"Erased {kind}s, asked for otherwise", ["method", "runs", *names], rows, note)


def _effect_table(kind: Kind, found: dict[str, list[CanvasRun]]) -> Table:
    rows: list[list[Cell]] = []
    for method, runs in found.items():
        of = side_effect_rates([SideEffects.from_dict(run.record["side_effects"]) for run in runs])
        told = _having(runs, "families")
        overall = f"{100 * overall_score(_rates(told), of.near.value, of.rest.value):.1f}" if told else MISSING
        entropy = MISSING if of.redirect_entropy is None else f"{of.redirect_entropy:.2f}"
        shares: list[Cell] = [percent(x) or MISSING for x in (of.near, of.far, of.rest, of.anchor_share)]
        rows.append([method, len(runs), *shares, points(of.excess_near), points(of.leak_in), entropy, overall])
    heads = [
        *("near ↑", "far ↑", "other attribute ↑", "to the anchor"),
        *("excess loss of near ↓", "leak into others ↓", "entropy", "H ↑"),
    ]
    note = (
        "In percent. Near and far: accuracy on the most and the least similar concepts of the kind. Other attribute: on "
        "prompts of the erased concept, what else was asked for. Excess: loss of accuracy on near concepts, less that on "
        "far ones. Leak: change of the rate at which other prompts show the erased concept. Entropy of what is shown in "
        "its place: 0 is one label, 1 all alike. H: harmonic mean of UA by name, UA of the hardest family, near and "
        "other attribute. Changes have 95 % bootstrap intervals over runs and prompts, shares Wilson's."
    )
    return Table(f"Erased {kind}s, side effects", ["method", "runs", *heads], rows, note)


def points(interval: Interval) -> str:
    """A change in percentage points with its interval and signs."""
    value, low, high = (f"{100 * part:+.1f}".replace("-", "−") for part in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"
