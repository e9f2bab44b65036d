"""Report of the reconstruction benchmark: the claim, tables, figures, images, and their files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_unlearn.benchmarks.paired import Verdict
from lightning_unlearn.benchmarks.reconstruction_images import ERROR_NOTE, reconstruction_images
from lightning_unlearn.benchmarks.reconstruction_results import CLEAN_LOSS, ReconstructionResults
from lightning_unlearn.benchmarks.reconstruction_tables import (
    cost_table,
    curves,
    quality_tables,
    settings_table,
    with_interval,
)
from lightning_unlearn.benchmarks.table import save_figure
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.plots import Line, line_figure
from lightning_unlearn.report.loggers import log_report
from lightning_unlearn.report.model import Headline, Tone, UnlearningReport
from lightning_unlearn.report.sections import Part, Section, Table
from lightning_unlearn.report.write import write_report

if TYPE_CHECKING:
    from lightning_unlearn.core.lightning import Logger

__all__ = ["reconstruction_report", "write_reconstruction_report"]

LIMITS = (
    "The brain template is an average of 152 brains, smoother than any of them, with simulated coils and phase; "
    "networks and images are small. Nothing here says what happens on scans of patients.",
    "An attack of finite strength can miss the worst perturbation: the numbers under attack are upper bounds.",
    "Intervals are over the seeds and test images that were run, each at 95 % for itself and not for all claims "
    "at once.",
)
TERMS = {
    "PSNR": "Peak signal-to-noise ratio of complex images in dB: 20 dB is a mean error of a tenth of the largest "
    "magnitude.",
    "SSIM": "Structural similarity of magnitudes, in windows of 7 by 7 pixels; 1 for equal images.",
    "attack": "PGD on the measured k-space, real and imaginary parts up to the given strength, in units in which the "
    "largest magnitude of an image is 1. Adaptive: the worst of what is found through the smoothed and through the "
    "plain network, from several starts.",
    "RS-E2E": "The whole network averaged over noise on the measurements.",
    "SMUG": "The denoiser of each step averaged over noise, and trained to be stable against it.",
}
_VERDICTS: dict[Verdict, tuple[str, Tone]] = {
    "holds": ("reproduced", "good"),
    "does not hold": ("not reproduced", "bad"),
    "undecided": ("undecided", "warning"),
}


def reconstruction_report(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> UnlearningReport:
    """Report the results of the reconstruction benchmark.

    Sections: ``claims``, ``quality``, ``curves``, ``images``, ``settings`` and ``cost``.

    Args:
        record: As ``bench_reconstruction`` returns it.
        folder: What the paths of kept images are relative to.
    """
    results = ReconstructionResults(record)
    sections = [
        Section("claims", "Claims", [_claims(results)], _how(results)),
        Section("quality", "Quality under all conditions", quality_tables(results)),
        Section("curves", "From weak to strong", curves(results)),
        Section("images", "Images", _images(results, Path(folder))),
        Section("settings", "Settings that were chosen", [settings_table(results)]),
        Section("cost", "Cost", [cost_table(results)]),
    ]
    return UnlearningReport(
        title="Robust MRI reconstruction: smoothed unrolling and its rivals",
        headline=_headline(results),
        subject={
            "data": "ICBM 152 brain template, simulated scans",
            "methods": len(record["methods"]),
            "seeds": len(record["seeds"]),
            "test images": record["conditions"]["rows"],
            "updates of a run": record["recipe"]["steps"],
        },
        sections=[section for section in sections if section.parts],
        provenance={name: value for name, value in record.items() if name not in ("methods", "zero_filled")},
        limits=list(LIMITS),
        terms=TERMS,
    )


def write_reconstruction_report(
    record: Mapping[str, Any], folder: str | os.PathLike[str], logger: Logger | None = None
) -> UnlearningReport:
    """Write ``report.json``, ``report.md``, ``report.html``, ``reconstruction.csv`` and ``reconstruction.svg``.

    Args:
        record: As ``bench_reconstruction`` returns it.
        folder: The benchmark's folder.
        logger: Where to log the numbers, tables and figures too.

    Returns:
        The report.

    Raises:
        ImportError: If jinja2 is missing; the other files are written even then.
    """
    results, report = ReconstructionResults(record), reconstruction_report(record, folder)
    write_text(Path(folder, "reconstruction.csv"), _csv(results))
    save_figure(Path(folder, "reconstruction.svg"), lambda: _figure(results))
    if logger is not None:
        log_report(logger, report, prefix="reconstruction/", show_text=True)
    write_report(report, folder, show_text=True)
    return report


def _headline(results: ReconstructionResults) -> Headline | None:
    found = results.verdict()
    if found is None:
        return None
    verdict, parts = found
    summary = (
        f"The claim: under the strongest attack SMUG is better than RS-E2E, and RS-E2E than vanilla MoDL, while SMUG "
        f"loses at most {CLEAN_LOSS:g} dB on clean measurements."
    )
    reasons = [f"{part.claim.text}: {with_interval(part.difference)} dB, {part.verdict}." for part in parts]
    return Headline(*_VERDICTS[verdict], summary, reasons)


def _how(results: ReconstructionResults) -> str:
    seeds = len(results.record["seeds"])
    over = "seeds and images" if seeds > 1 else "images, of one seed: they say nothing of other seeds"
    return (
        "Differences of PSNR in dB, paired by seed and image, with 95 % intervals over "
        + over
        + ". A claim holds where "
        "all of the interval is on its side, and does not hold where all of it is on the other."
    )


def _claims(results: ReconstructionResults) -> Table:
    rows = [[claim.text, with_interval(difference), verdict] for claim, difference, verdict in results.decided()]
    return Table("Paired differences of PSNR", ["", "dB, 95 % interval", "the claim"], rows)


def _images(results: ReconstructionResults, folder: Path) -> list[Part]:
    """An image of the first seed, clean and under the strongest attack of each network."""
    kept = {name: _kept(results.runs(name)[0], folder) for name in results.methods}
    kept = {name: images for name, images in kept.items() if images}
    if not kept:
        return []
    conditions, first = ("clean", results.eps[-1]), next(iter(kept.values()))
    shown = {c: {name: (images[c]["image"], images[c]["error"]) for name, images in kept.items()} for c in conditions}
    return [reconstruction_images("A test image", shown, first["clean"]["target"], ERROR_NOTE)]


def _kept(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    files = [folder / file for file in run["files"] if file.endswith("images.pt")]
    return torch.load(files[0], weights_only=True) if files and files[0].exists() else {}


def _csv(results: ReconstructionResults) -> str:
    """A row for each method, seed, condition and image."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["method", "seed", "condition", "image", "psnr", "ssim", "nmse"])
    runs = [
        (name, seed, run["test"])
        for name in results.record["methods"]
        for seed, run in zip(results.record["seeds"], results.record["methods"][name]["runs"], strict=True)
        if "error" not in run
    ]
    for name, seed, test in [("zero-filled", "", results.record["zero_filled"]["test"]), *runs]:
        for condition, quality in test.items():
            columns = zip(*(quality[measure] for measure in ("psnr", "ssim", "nmse")), strict=True)
            lines.writerows([name, seed, condition, i, *map(repr, row)] for i, row in enumerate(columns))
    return file.getvalue()


def _figure(results: ReconstructionResults) -> Any:
    """PSNR of each method by the strength of the attack."""
    strengths = results.record["conditions"]["eps"]
    names = ["clean", *results.eps]
    lines = [
        Line(name, [0.0, *strengths], [float(results.values(name, c).mean()) for c in names], i)
        for i, name in enumerate(results.methods)
    ]
    return line_figure(lines, "strength of the attack; PSNR in dB", from_zero=False)
