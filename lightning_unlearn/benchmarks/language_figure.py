"""Curves of a benchmark of language models: what comes back under relearning and quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unlearn.benchmarks.table import save_figure
from lightning_unlearn.core.plots import Line, line_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["save_curves", "strengths"]

_BITS = {"int4": 4, "int8": 8, "none": 32}


def strengths(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean extraction strength over runs: without an attack, and under each; of relearning after each measured step."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for attack, scores in run["knowledge"].items():
            if attack not in run["curves"] and "strength" in scores:
                found.setdefault(attack, []).append(float(np.mean(scores["strength"])))
        for attack, curve in run["curves"].items():
            for step, value in zip(curve["steps"], curve["values"], strict=True):
                found.setdefault(f"{attack}, step {step}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def save_curves(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Draw extraction strength against the steps of each relearning attack, and against the bits of the weights.

    Files are ``<name>_relearning_in_domain.svg`` and so on, and ``<name>_bits.svg``.
    """
    groups = {n: [outcome] for n, outcome in record["anchors"].items()}
    groups |= {n: entry["runs"] for n, entry in record["entries"].items()}
    means = {n: strengths(finite) for n, runs in groups.items() if (finite := [r for r in runs if "error" not in r])}
    attacks = sorted({attack for runs in groups.values() for run in runs for attack in run.get("curves", ())})
    for attack in attacks:
        lines = {n: _steps(attack, values) for n, values in means.items()}
        _save(folder / f"{name}_{attack.replace(', ', '_')}.svg", lines, "steps of relearning", record["anchors"])
    bits = {n: [(count, v[scheme]) for scheme, count in _BITS.items() if scheme in v] for n, v in means.items()}
    if any(len(points) > 1 for points in bits.values()):
        _save(folder / f"{name}_bits.svg", bits, "bits of a weight", record["anchors"])


def _steps(attack: str, values: Mapping[str, float]) -> list[tuple[float, float]]:
    beginning = f"{attack}, step "
    return [(int(key.removeprefix(beginning)), value) for key, value in values.items() if key.startswith(beginning)]


def _save(
    path: Path, points: Mapping[str, Sequence[tuple[float, float]]], x_label: str, grey: Mapping[str, Any]
) -> None:
    colours = {name: i for i, name in enumerate(name for name in points if name not in grey)}
    lines = [Line(n, [x for x, _ in p], [y for _, y in p], colours.get(n)) for n, p in points.items()]

    def draw() -> Figure:
        figure = line_figure(lines, x_label, share=True)
        assert figure is not None
        return figure

    save_figure(path, draw)
