"""Reports in loggers: numbers, tables, images and figures, and the summary of a W&B run."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

from lightning_unlearn.core.lightning import (
    CSV_LOGGERS,
    TENSORBOARD_LOGGERS,
    WANDB_LOGGERS,
    Logger,
    rank_zero_warn,
)
from lightning_unlearn.core.monitor import log_folder, log_table
from lightning_unlearn.report.figures import figure_of
from lightning_unlearn.report.html import slug
from lightning_unlearn.report.layout import cell, interval, number
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.redaction import redacted
from lightning_unlearn.report.sections import Bars, Curve, Examples, Heatmap, Images, Part, Table

__all__ = ["log_report"]

MEASURES = ["section", "measurement", "variant", "outcome", "value", "interval", "before", "control", "n", "reason"]


def log_report(
    logger: Logger, report: UnlearningReport, step: int = 0, prefix: str = "report/", show_text: bool = False
) -> None:
    """Log a report: each number as a metric, and tables, examples, figures and images where the logger can show them.

    W&B gets the verdict and the numbers in the run's summary, too; TensorBoard gets tables as text; a ``CSVLogger``
    gets a file for each table and figure; any other logger gets the numbers, and tables where it has ``log_table``.

    Args:
        logger: The logger.
        report: The report.
        step: Training step that it belongs to.
        prefix: What the names begin with.
        show_text: Whether texts and images of rows to forget are logged, see `write_report`.

    Raises:
        ImportError: If pillow is missing, which images in W&B need.
    """
    report = report if show_text else redacted(report)
    numbers = {
        f"{prefix}{section}/{part.key}": part.value for section, part in report.measurements() if part.value is not None
    }
    logger.log_metrics(numbers, step=step)
    if isinstance(logger, WANDB_LOGGERS):
        verdict = {f"{prefix}verdict": report.headline.word} if report.headline else {}
        logger.experiment.summary.update({**verdict, **numbers})
    log_table(logger, f"{prefix}measurements", MEASURES, _measurements(report), step)
    for name, part in _named(report, prefix):
        if isinstance(part, Table):
            log_table(
                logger, name, part.columns or ["name", "value"], [list(map(cell, row)) for row in part.rows], step
            )
        elif isinstance(part, Examples):
            log_table(logger, name, ["set", "input", "expected", *part.columns], _examples(part), step)
        elif isinstance(part, (Curve, Bars)):
            _log_figure(logger, name, part, step)
        elif isinstance(part, Heatmap):
            _log_figure(logger, name, part, step)
            log_table(logger, f"{name}-values", [part.row_label, *part.columns], _matrix(part), step)
        elif isinstance(part, Images):
            _log_images(logger, name, part, step)


def _measurements(report: UnlearningReport) -> list[list[str]]:
    rows = []
    for section, part in report.measurements():
        anchors = [number(anchor, part.unit, part.n) for anchor in (part.anchors.original, part.anchors.control)]
        value, n = number(part.value, part.unit, part.n), "" if part.n is None else str(part.n)
        bounds = interval(part.interval, part.unit)
        rows.append([section, part.name, part.variant, part.outcome, value, bounds, *anchors, n, part.reason])
    return rows


def _named(report: UnlearningReport, prefix: str) -> Iterator[tuple[str, Part]]:
    """The parts but measurements and prose, each with a name of its own."""
    seen: dict[str, int] = {}
    for section in report.sections:
        for part in section.parts:
            if isinstance(part, (Table, Examples, Curve, Bars, Heatmap, Images)):
                name = f"{prefix}{section.id}/{slug(part.title) or type(part).__name__.lower()}"
                seen[name] = seen.get(name, 0) + 1
                yield name if seen[name] == 1 else f"{name}-{seen[name]}", part


def _examples(part: Examples) -> list[list[str]]:
    return [[row.set, row.input, row.expected, *(text or "" for text in row.outputs)] for row in part.rows]


def _matrix(part: Heatmap) -> list[list[str]]:
    """The values in full, so that they can be worked with."""
    return [
        [name, *("" if value is None else f"{value:.6g}" for value in values)]
        for name, values in zip(part.rows, part.values, strict=True)
    ]


def _log_figure(logger: Logger, name: str, part: Curve | Bars | Heatmap, step: int) -> None:
    if not isinstance(logger, (*WANDB_LOGGERS, *TENSORBOARD_LOGGERS, *CSV_LOGGERS)):
        return
    try:
        figure = figure_of(part)
    except ImportError as error:
        rank_zero_warn(f"{part.title!r} is not drawn. {error}")
        return
    if figure is None:
        return
    if isinstance(logger, TENSORBOARD_LOGGERS):
        logger.experiment.add_figure(name, figure, step)
    elif isinstance(logger, CSV_LOGGERS):
        figure.savefig(log_folder(logger) / f"{name.replace('/', '-')}.svg")
    else:
        with io.BytesIO() as file:
            figure.savefig(file, format="png", dpi=150)
            logger.log_image(name, [_picture(file.getvalue())])  # type: ignore[attr-defined]


def _log_images(logger: Logger, name: str, part: Images, step: int) -> None:
    shown = [
        (image, f"{row.name} {caption}".strip())
        for row in part.rows
        for image, caption in zip(row.images, row.captions or part.columns or [""] * len(row.images), strict=True)
        if image
    ]
    if not shown:
        return
    files = [base64.b64decode(image.partition(",")[2]) for image, _ in shown]
    if isinstance(logger, WANDB_LOGGERS):
        logger.log_image(name, [_picture(file) for file in files], caption=[caption for _, caption in shown])
    elif isinstance(logger, TENSORBOARD_LOGGERS):
        import numpy as np

        for place, file in enumerate(files):
            logger.experiment.add_image(f"{name}/{place}", np.asarray(_picture(file)), step, dataformats="HWC")


def _picture(file: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('Images are logged by pillow: pip install "lightning-unlearn[wandb]"') from None
    return Image.open(io.BytesIO(file)).convert("RGB")
