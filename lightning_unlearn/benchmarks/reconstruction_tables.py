"""Tables and curves of the reconstruction benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_unlearn.benchmarks.paired import PairedDifference
from lightning_unlearn.benchmarks.reconstruction_results import ReconstructionResults
from lightning_unlearn.benchmarks.table import spread
from lightning_unlearn.reconstruction.sweep_results import SweepCondition
from lightning_unlearn.report.sections import Curve, Part, Series, Table

__all__ = ["cost_table", "curves", "difference_table", "quality_tables", "settings_table", "with_interval"]

_KINDS = {
    "attack": ("Under attack", "strength of the attack", "eps"),
    "noise": ("Gaussian noise on the measurements", "standard deviation of the noise", "noise"),
    "acceleration": ("Other accelerations", "acceleration", "rates"),
    "steps": ("More and fewer steps of the network", "steps", "unrolled_steps"),
}
_MEASURES = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3)}


def quality_tables(results: ReconstructionResults) -> list[Part]:
    """PSNR and SSIM of each method under each kind of condition, with the clean measurements beside it."""
    return [
        _table(results, kind, title, measure)
        for kind, (title, _, field) in _KINDS.items()
        if results.record["conditions"][field]
        for measure in _MEASURES
    ]


def _table(results: ReconstructionResults, kind: str, title: str, measure: str) -> Table:
    words, digits = _MEASURES[measure]
    names = ["clean", *_names(results, kind)]
    rows = [["zero-filled", *_zero_filled(results, names, measure, digits)]]
    for method in results.record["methods"]:
        if failed := results.failed(method):
            rows.append(
                [method, f"diverged on {failed} of {len(results.record['seeds'])} seeds", *[""] * len(names[1:])]
            )
        else:
            rows.append([method, *(spread(results.by_seed(method, name, measure), digits) for name in names)])
    spreads = "Mean over the images, ± the standard deviation over seeds." if len(results.record["seeds"]) > 1 else ""
    return Table(f"{title}: {words}", ["", *names], rows, spreads)


def _names(results: ReconstructionResults, kind: Any) -> list[str]:
    return [SweepCondition(kind, strength).name for strength in results.record["conditions"][_KINDS[kind][2]]]


def _zero_filled(results: ReconstructionResults, names: Sequence[str], measure: str, digits: int) -> list[str]:
    test = results.record["zero_filled"]["test"]
    return [spread([float(np.mean(test[name][measure]))], digits) if name in test else "" for name in names]


def curves(results: ReconstructionResults) -> list[Part]:
    """PSNR by strength, and differences to vanilla under attack with their intervals."""
    parts: list[Part] = []
    for kind, (title, axis, field) in _KINDS.items():
        strengths, names = list(results.record["conditions"][field]), _names(results, kind)
        if kind in ("attack", "noise"):
            strengths, names = [0.0, *strengths], ["clean", *names]
        series = [
            Series(method, strengths, [float(results.values(method, name).mean()) for name in names])
            for method in results.methods
        ]
        if series and len(names) > 1:
            parts.append(
                Curve(title, axis, "PSNR, dB", series, unit="dB", note=f"{title}: PSNR by {axis}, a line a method.")
            )
        if kind == "attack" and "vanilla" in results.methods and len(results.methods) > 1:
            parts.append(_differences(results, strengths, names))
    return parts


def _differences(results: ReconstructionResults, strengths: Sequence[float], names: Sequence[str]) -> Curve:
    series = []
    for method in results.methods:
        found = [results.difference(method, "vanilla", name) for name in names]
        own = method == "vanilla"  # a line at 0 without a band
        low, high = (None, None) if own else ([d.low for d in found], [d.high for d in found])
        series.append(Series(method, strengths, [d.mean for d in found], low, high))
    note = "Paired differences to vanilla MoDL by the strength of the attack, with 95 % intervals; above 0 is better."
    return Curve("Under attack, against vanilla", "strength of the attack", "PSNR above vanilla, dB", series, note=note)


def difference_table(results: ReconstructionResults, better: str, worse: str) -> Table:
    """PSNR of two methods under each condition, and the paired difference with its interval."""
    rows = []
    for name in results.conditions:
        values = [f"{results.values(method, name).mean():.2f}" for method in (worse, better)]
        rows.append([name, *values, with_interval(results.difference(better, worse, name))])
    note = "Differences are paired image by image; their 95 % intervals are over images"
    note += " and seeds." if len(results.record["seeds"]) > 1 else ", of one seed."
    return Table("PSNR, dB", ["", worse, better, "difference"], rows, note)


def with_interval(difference: PairedDifference) -> str:
    """A difference in dB with its interval, which no line break divides.

    Example:
        >>> with_interval(PairedDifference(0.5, 0.25, 0.75, 3, 12)).split()
        ['+0.50', '[+0.25,', '+0.75]']
    """
    return f"{difference.mean:+.2f} [{difference.low:+.2f},\u00a0{difference.high:+.2f}]"


def settings_table(results: ReconstructionResults) -> Table:
    """The setting of each method that was chosen on validation images, and between which scores."""
    columns = ["", "lr", "sigma", "weight of the reconstruction", "eps", "score", "least and largest score"]
    rows: list[list[Any]] = []
    for name, method in results.record["methods"].items():
        chosen, tried = method["setting"], [entry["score"] for entry in method["tuning"]]
        own = [chosen[key] or None for key in ("lr", "sigma", "reconstruction_weight", "eps")]
        rows.append([name, *own, f"{max(tried):.2f}", f"{min(tried):.2f} to {max(tried):.2f}"])
    eps = results.record["conditions"]["eps"]
    note = (
        f"Of {results.record['settings']} settings of each method, the one with the highest score on validation "
        f"images. Of vanilla, the score is the mean PSNR in dB of clean measurements and of an attack of "
        f"{eps[len(eps) // 2]:g}; of other methods, the PSNR under this attack, or, for settings that lose too much "
        f"against vanilla on clean measurements, the loss as a negative number. -1000 is a network that diverged."
    )
    return Table("Chosen settings", columns, rows, note)


def cost_table(results: ReconstructionResults) -> Table:
    """Time of a training, and what a reconstruction costs."""
    steps, samples = results.record["recipe"]["unrolled_steps"], results.record["conditions"]["samples"]
    many = {"smug": samples, "weighted_smug": samples, "rs_e2e": samples}
    rows = []
    for name in results.methods:
        mode, seconds = results.record["methods"][name]["mode"], [run["seconds"] for run in results.runs(name)]
        passes = steps * many.get(mode, 1)
        solves = passes if mode == "rs_e2e" else steps
        rows.append([name, f"{np.median(seconds):.0f}", passes, solves])
    columns = ["", "processor seconds of a training", "passes of the denoiser", "solves"]
    return Table("A training and a reconstruction", columns, rows, "Passes and solves are those of one reconstruction.")
