"""Report of UnlearnCanvas results: tables, figures, accuracy matrices, and their files."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.benchmarks.canvas_beyond import beyond_section
from lightning_unlearn.benchmarks.canvas_harder import (
    attack_section,
    pair_section,
    sequence_section,
)
from lightning_unlearn.benchmarks.canvas_images import image_section
from lightning_unlearn.benchmarks.canvas_models import method_section
from lightning_unlearn.benchmarks.canvas_orderings import orderings
from lightning_unlearn.benchmarks.canvas_published import SOURCE
from lightning_unlearn.benchmarks.canvas_results import KINDS, CanvasResults
from lightning_unlearn.benchmarks.canvas_tables import bars, summary, trade_off
from lightning_unlearn.core.files import write_text
from lightning_unlearn.report.html import slug
from lightning_unlearn.report.loggers import log_report
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.write import write_report

if TYPE_CHECKING:
    from lightning_unlearn.core.lightning import Logger

__all__ = ["canvas_report", "write_canvas_report", "write_matrices"]

LIMITS = (
    "UA counts every image that is not judged as the erased concept, also noise: read it with IRA, CRA and the maps of "
    "what such images show.",
    "The judges are classifiers, and their errors count as the model's.",
    "Intervals are over the targets and seeds that were run; they say nothing about other concepts or models.",
)
TERMS = {
    "UA": "Unlearning accuracy: share of images of the erased concept that the judge of its kind sees as another one.",
    "IRA": "In-domain retain accuracy: mean accuracy on the other concepts of the erased one's kind.",
    "CRA": "Cross-domain retain accuracy: mean accuracy on the concepts of the other kind.",
    "H": "Harmonic mean of UA, IRA and CRA; 0 if one of them is.",
    "FID": "Fréchet distance of the features of retained images to those of the reference.",
}


def canvas_report(results: Mapping[str, Any], folder: str | os.PathLike[str]) -> UnlearningReport:
    """Report the results of the UnlearnCanvas benchmark.

    Sections: ``summary``, ``trade-off``, ``bars``, ``orderings``, ``attack``, ``pairs``, ``sequential``, ``beyond``,
    ``images``, and ``method-<name>`` for each method with its measurements and its accuracy matrix. Sections without
    measurements are left out. Published rows stand beside ours if the setting is the same.

    Args:
        results: The record of the benchmark. Its keys are ``names`` (``"mini"`` or ``"unlearncanvas"``), ``seeds`` of
            the answer sets, ``base`` and ``methods``; ``base["scores"]`` and the ``scores`` of each run are paths of
            [`AnswerScores`][lightning_unlearn.AnswerScores].
        folder: What these paths are relative to.

    Raises:
        IncompleteAnswers: If an image is missing in an answer set; it lists them.
        FileNotFoundError: If a file of scores is missing.
        ValueError: If the record has no methods, or names what the benchmark does not have.
    """
    return _report(CanvasResults(results, folder))


def write_canvas_report(
    results: Mapping[str, Any], folder: str | os.PathLike[str], logger: Logger | None = None
) -> UnlearningReport:
    """Write the report, its matrices and its summary into the benchmark's folder.

    The files are ``report.json``, ``report.md``, ``report.html``, ``summary.csv``, and those of `write_matrices`.

    Args:
        results: The record, see `canvas_report`.
        folder: Where the scores are, and where to write.
        logger: Where to log the numbers, tables and figures too, such as a ``WandbLogger``.

    Returns:
        The report.

    Raises:
        ImportError: If jinja2 is missing; the other files are written even then.
    """
    read = CanvasResults(results, folder)
    report = _report(read)
    write_matrices(read, Path(folder, "matrices"))
    write_text(Path(folder, "summary.csv"), _summary_csv(read))
    if logger is not None:
        log_report(logger, report, prefix="canvas/")
    write_report(report, folder)
    return report


def write_matrices(results: CanvasResults, folder: Path) -> None:
    """Write the accuracy matrix of each method, its mean over seeds and that of each seed, and sequences.

    The files are ``<method>.csv``, ``<method>-seed<seed>.csv`` and ``<method>-sequence.csv``. Accuracies are in [0, 1]
    and in full, for `AccuracyMatrix.from_csv`.
    """
    for method, matrices in results.matrices.items():
        results.mean_matrix(method).to_csv(folder / f"{slug(method)}.csv")
        for seed, matrix in matrices.items():
            matrix.to_csv(folder / f"{slug(method)}-seed{seed}.csv")
    for method, sequence in results.sequences.items():
        sequence.to_csv(folder / f"{slug(method)}-sequence.csv")


def _report(results: CanvasResults) -> UnlearningReport:
    sections = [
        summary(results),
        trade_off(results),
        bars(results),
        *(orderings(results), attack_section(results), pair_section(results), sequence_section(results)),
        *(beyond_section(results), image_section(results)),
        *(method_section(results, method) for method in results.methods),
    ]
    names = results.names
    targets = {kind: {run.target for m in results.methods for run in results.runs(m, kind)} for kind in KINDS}
    return UnlearningReport(
        title=f"UnlearnCanvas, {len(names.styles)} styles and {len(names.objects)} objects",
        sections=[section for section in sections if section is not None],
        subject={
            "methods": len(results.methods),
            "erased styles": len(targets["style"]),
            "erased objects": len(targets["object"]),
            "runs": sum(map(len, results.methods.values())),
            "images of a model": int(results.base.seen.sum()),
        },
        provenance={**_settings(results.record), "published figures": SOURCE},
        limits=list(LIMITS),
        terms=TERMS,
    )


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of the benchmark as a whole."""
    results = ("methods", "base", "pairs", "sequential")
    return {name: value for name, value in record.items() if name not in results}


def _summary_csv(results: CanvasResults) -> str:
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["method", "kind", "measure", "value", "low", "high", "runs"])
    for method, means in {"None": results.base_summary, **results.summaries}.items():
        for name, interval in means.items():
            kind, _, measure = name.partition("/")
            runs = len(results.runs(method, kind)) if method in results.methods else ""  # type: ignore[arg-type]
            lines.writerow([method, kind, measure, *("" if math.isnan(x) else repr(x) for x in interval), runs])
    return file.getvalue()
