"""Tables, claims and curves of the comparison of smoothing strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_unlearn.benchmarks.grid import Outcome
from lightning_unlearn.benchmarks.smoothing_methods import NONE
from lightning_unlearn.benchmarks.table import markdown, save_figure, spread
from lightning_unlearn.core.plots import Line, line_figure
from lightning_unlearn.core.seeds import over_seeds
from lightning_unlearn.functional.robustness import curve_area, recovery_area

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EQUAL", "Gap", "area", "paired", "save_curves", "table", "verdict"]

EQUAL = 0.02
"""Largest difference of the forgotten shares before the attack at which two strategies are compared."""

Gap = tuple[float, float]
"""A mean difference over seeds, and the half-width of its 95 % interval; NaN for a single seed."""

_MEASURES: dict[str, Callable[[Outcome], float]] = {
    "area": lambda run: area(run),
    "last": lambda run: run["relearning"]["forgotten"][-1],
    "int4": lambda run: run["rounded"],
}


def area(run: Outcome) -> float:
    """Mean forgotten share over the updates of the attack."""
    return curve_area(run["relearning"]["steps"], run["relearning"]["forgotten"])


def paired(runs: Sequence[Outcome], base: Sequence[Outcome], measure: Callable[[Outcome], float]) -> Gap | None:
    """Mean difference to the runs without smoothing on the same seeds, with its interval.

    Returns:
        ``None`` if no seed has both runs at the level.
    """
    pairs = [(run, other) for run, other in zip(runs, base, strict=True) if _counts(run) and _counts(other)]
    if not pairs:
        return None
    over = over_seeds(torch.tensor([measure(run) - measure(other) for run, other in pairs]))
    return over.mean, over.ci


def verdict(gap: Gap | None, before: Gap | None) -> str:
    """What an interval says about the claim that a strategy keeps more forgotten.

    Example:
        >>> verdict((0.1, 0.05), (0.0, 0.01)), verdict((0.1, 0.2), (0.0, 0.01)), verdict((0.1, 0.05), (0.03, 0.01))
        ('holds', 'not reproduced', 'not comparable')
    """
    if gap is None or before is None or abs(before[0]) > EQUAL:
        return "not comparable"
    mean, half = gap
    if math.isnan(half):
        return "one seed"
    if mean - half > 0:
        return "holds"
    return "the reverse" if mean + half < 0 else "not reproduced"


def table(record: dict[str, Any]) -> str:
    """Markdown: a table of all runs, the claims, and the sweep where there is one. Shares are in percent."""
    parts = [markdown(_header(record), _rows(record))]
    if claims := _claims(record):
        parts.append(markdown(_CLAIMS, claims))
    others = [
        [name, objective, text] for objective in record["objectives"] for name, text in _others(record, objective)
    ]
    parts.append(markdown(["claim", "", ""], others))
    if sweep := record["sweep"]:
        parts.append(
            markdown(["ρ", *_header(record)[2:]], [[rho, *_row(r, record)] for rho, r in sweep["runs"].items()])
        )
    return "\n".join(parts)


def save_curves(folder: Path, task: str, record: Mapping[str, Any]) -> None:
    """Draw the forgotten share by the updates of the attack, ``<task>_<objective>.svg``, means over seeds."""
    for objective, strategies in record["objectives"].items():
        groups = {**record["anchors"], **{name: entry["runs"] for name, entry in strategies.items()}}
        curves = {name: _curve(runs) for name, runs in groups.items()}
        colours = {name: i for i, name in enumerate(strategies)}
        lines = [Line(n, *points, colours.get(n)) for n, points in curves.items() if points is not None]
        save_figure(folder / f"{task}_{objective}.svg", lambda lines=lines: _figure(lines))  # type: ignore[misc]


def _figure(lines: Sequence[Line]) -> Figure:
    figure = line_figure(lines, "updates of relearning", share=True)
    assert figure is not None
    return figure


def _counts(run: Outcome) -> bool:
    return "error" not in run and run["reached"]


def _curve(runs: Sequence[Outcome]) -> tuple[list[float], list[float]] | None:
    kept = [run["relearning"] for run in runs if _counts(run)]
    if not kept:
        return None
    return kept[0]["steps"], np.mean([curve["forgotten"] for curve in kept], axis=0).tolist()


def _shown(record: Mapping[str, Any]) -> list[int]:
    """Places in a curve: the first update, one in between, the last."""
    count = len(record["anchors"]["original"][0]["relearning"]["steps"])
    return sorted({1, max(1, (count - 1) // 4), count - 1})


def _header(record: Mapping[str, Any]) -> list[str]:
    steps = record["anchors"]["original"][0]["relearning"]["steps"]
    after = [f"after {steps[i]}" for i in _shown(record)]
    names = ["updates", "NLL", "before", *after, "area", "recovered", "int4", "utility", "sharpness", "passes", "s"]
    return ["", "setting", *names]


def _rows(record: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, "", *_row(runs, record)] for name, runs in record["anchors"].items()]
    for objective, strategies in record["objectives"].items():
        for name, entry in strategies.items():
            label = objective if name == NONE else f"{objective} + {name}"
            rows.append([label, _setting(entry["setting"]), *_row(entry["runs"], record)])
    return rows


def _setting(setting: Mapping[str, Any]) -> str:
    arguments = setting["callbacks"][1]["init_args"] if len(setting["callbacks"]) > 1 else {}
    given = [f"{key}={value}" for key, value in arguments.items() if key != "scheme"]
    return ", ".join([f"lr={setting['lr']:g}", *given])


def _row(runs: Sequence[Outcome], record: Mapping[str, Any]) -> list[str]:
    kept = [run for run in runs if _counts(run)]
    missed = f"level not reached in {len(runs) - len(kept)} of {len(runs)} runs"
    if not kept:
        return [missed]
    curves = [run["relearning"]["forgotten"] for run in kept]
    recovered = _recovered(runs, record)
    has_sharpness = all("sharpness" in run for run in kept)
    updates = np.array([run["updates"] for run in kept])
    return [
        f"{np.mean(updates):.0f}" if len(kept) == len(runs) else missed,
        f"{np.mean([run['nll'] for run in kept]):.2f}",
        spread([100 * run["forgotten"] for run in kept]),
        *(f"{100 * np.mean([curve[i] for curve in curves]):.1f}" for i in _shown(record)),
        spread([100 * area(run) for run in kept]),
        f"{100 * np.mean(recovered):.0f}" if recovered else "",
        spread([100 * run["rounded"] for run in kept]),
        spread([100 * run["utility"]["utility"] for run in kept]),
        f"{np.mean([run['sharpness'] for run in kept]):.3f}" if has_sharpness else "",
        f"{np.mean([run['passes'] / n for run, n in zip(kept, updates, strict=True)]):.1f}" if updates.all() else "",
        f"{np.mean([run['seconds'] for run in kept]):.2f}" if updates.all() else "",
    ]


def _recovered(runs: Sequence[Outcome], record: Mapping[str, Any]) -> list[float]:
    """Recovered share of the knowledge over the attack, between the retrained and the original model of each seed."""
    if "retrained" not in record["anchors"]:
        return []
    sides = (record["anchors"][name] for name in ("retrained", "original"))
    found = []
    for three in zip(runs, *sides, strict=True):
        if not _counts(three[0]):
            continue
        known = [[1 - share for share in run["relearning"]["forgotten"]] for run in three]
        found.append(recovery_area(three[0]["relearning"]["steps"], *known))
    return [share for share in found if share is not None]


_CLAIMS = ["keeps more forgotten than without", "before", "area", "", "last update", "", "int4", ""]


def _claims(record: Mapping[str, Any]) -> list[list[str]]:
    """Differences to the objective alone in points, with their intervals, and what they say."""
    rows = []
    for objective, strategies in record["objectives"].items():
        if NONE not in strategies:
            continue
        base = strategies[NONE]["runs"]
        for name, entry in strategies.items():
            if name == NONE:
                continue
            before = paired(entry["runs"], base, lambda run: run["forgotten"])
            row = [f"{objective} + {name}", _points(before)]
            for measure in _MEASURES.values():
                gap = paired(entry["runs"], base, measure)
                row += [_points(gap), verdict(gap, before)]
            rows.append(row)
    return rows


def _points(gap: Gap | None) -> str:
    if gap is None:
        return ""
    return f"{100 * gap[0]:+.1f}" + (f" ± {100 * gap[1]:.1f}" if math.isfinite(gap[1]) else "")


def _others(record: Mapping[str, Any], objective: str) -> list[tuple[str, str]]:
    """The published claims about SAM among the strategies, utility, the course of the attack and sharpness."""
    strategies = {name: entry["runs"] for name, entry in record["objectives"][objective].items()}
    full = {name: runs for name, runs in strategies.items() if all(map(_counts, runs))}
    found = []
    if len(full) > 1:
        areas = {name: float(np.mean([area(run) for run in runs])) for name, runs in full.items()}
        best = max(areas, key=areas.__getitem__)
        found.append(("SAM keeps most forgotten of all", "holds" if best == "SAM" else f"not reproduced: {best} does"))
    if NONE in full:
        utilities = {n: float(np.mean([run["utility"]["utility"] for run in runs])) for n, runs in full.items()}
        worst = min(utilities, key=utilities.__getitem__)
        loss = 100 * (utilities[NONE] - utilities[worst])
        text = "holds" if loss <= 3 else f"not reproduced: {worst} loses {loss:.1f}"
        found.append(("utility within 3 points of the objective alone", text))
    rising = sorted(
        n for n, runs in full.items() if any(b > a + EQUAL for a, b in pairwise((_curve(runs) or ([], []))[1]))
    )
    text = f"not reproduced: {', '.join(rising)}" if rising else "holds"
    found.append(("more updates never bring forgetting back", text))
    if {"SAM", NONE} <= full.keys() and all("sharpness" in run for n in ("SAM", NONE) for run in full[n]):
        gap = paired(full[NONE], full["SAM"], lambda run: run["sharpness"])
        assert gap is not None
        difference = f"{-gap[0]:+.3f}" + (f" ± {gap[1]:.3f}" if math.isfinite(gap[1]) else "")
        found.append(("the forget loss is flatter with SAM", f"{verdict(gap, (0.0, 0.0))}: {difference} nats"))
    return found
