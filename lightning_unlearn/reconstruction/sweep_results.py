"""Results of a robustness sweep: rows, their summary, files, figures and tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.lightning import CSV_LOGGERS, TENSORBOARD_LOGGERS, WANDB_LOGGERS, Logger, rank_zero_warn
from lightning_unlearn.core.monitor import log_table
from lightning_unlearn.core.plots import Line, Panel, error_map_figure, panel_figure

__all__ = ["METRICS", "ShownImage", "Summary", "SweepCondition", "SweepResults", "SweepRow"]

METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nmse": "NMSE", "complex_psnr": "complex PSNR (dB)"}
"""What is measured, with the name that figures give it."""
_DRAWN = ("psnr", "ssim", "nmse")
_KINDS = {
    "attack": "radius of the attack",
    "noise": "standard deviation of the noise",
    "acceleration": "acceleration",
    "steps": "unrolled steps",
}


class SweepCondition(NamedTuple):
    """A condition under which images are reconstructed.

    Args:
        kind: ``"clean"``, ``"attack"``, ``"noise"``, ``"acceleration"`` or ``"steps"``.
        strength: Radius, standard deviation, acceleration, or number of steps; 0 for ``"clean"``.
    """

    kind: str
    strength: float

    @property
    def name(self) -> str:
        """The name, for example ``attack 0.02``."""
        return self.kind if self.kind == "clean" else f"{self.kind} {self.strength:g}"


class SweepRow(NamedTuple):
    """The quality of one image under one condition.

    Args:
        kind: Kind of the condition.
        strength: Strength of the condition.
        set: Index of the loader.
        index: Number of the image in its set.
        psnr: Peak signal-to-noise ratio of the magnitude, in dB.
        ssim: Structural similarity of the magnitude.
        nmse: Normalised squared error of the complex image.
        complex_psnr: Peak signal-to-noise ratio of the complex image, in dB.
    """

    kind: str
    strength: float
    set: int
    index: int  # type: ignore[assignment]
    psnr: float
    ssim: float
    nmse: float
    complex_psnr: float


class Summary(NamedTuple):
    """A mean over images.

    Args:
        mean: The mean.
        error: Its standard error; NaN for a single image.
        count: Number of images.
    """

    mean: float
    error: float
    count: int  # type: ignore[assignment]


class ShownImage(NamedTuple):
    """An image to plot.

    Args:
        condition: Condition under which it was reconstructed.
        place: Index of its loader and number of the image.
        target: Magnitude of the reference, shape ``(H, W)``.
        zero_filled: Magnitude of the zero-filled image.
        image: Magnitude of the reconstruction.
        error: Magnitude of its complex error.
    """

    condition: SweepCondition
    place: tuple[int, int]
    target: Tensor
    zero_filled: Tensor
    image: Tensor
    error: Tensor


@dataclass
class SweepResults:
    """Results of a sweep.

    Args:
        rows: The quality of each image under each condition.
        shown: The images to plot.
        notes: Skipped conditions, and why.
    """

    rows: list[SweepRow] = field(default_factory=list)
    shown: list[ShownImage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def merged(cls, parts: Iterable[SweepResults]) -> SweepResults:
        """The merged results of several processes: each image once, in the order of conditions, sets and images."""
        merged, order = cls(), ["clean", *_KINDS]
        rows = {(row.kind, row.strength, row.set, row.index): row for part in parts for row in part.rows}
        places = sorted(rows, key=lambda key: (order.index(key[0]) if key[0] in order else -1, *key[1:]))
        merged.rows = [rows[place] for place in places]
        shown = {(image.condition, image.place): image for part in parts for image in part.shown}
        merged.shown = sorted(shown.values(), key=lambda image: image.place)
        merged.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        return merged

    @classmethod
    def read(cls, path: str | Path) -> SweepResults:
        """The rows of a CSV file written by a sweep."""
        with open(path, encoding="utf-8", newline="") as file:
            return cls([_row(line) for line in csv.DictReader(file)])

    @property
    def conditions(self) -> list[SweepCondition]:
        """The conditions, in the order of the rows."""
        return list(dict.fromkeys(SweepCondition(row.kind, row.strength) for row in self.rows))

    def values(self, condition: SweepCondition, metric: str) -> dict[tuple[int, int], float]:
        """The value of each image by its set and number, for paired differences between two sweeps."""
        rows = [row for row in self.rows if (row.kind, row.strength) == condition]
        return {(row.set, row.index): getattr(row, metric) for row in rows}

    def summary(self, condition: SweepCondition, metric: str) -> Summary:
        """Mean of a metric over the images, with its standard error."""
        values = [*self.values(condition, metric).values()]
        mean = sum(values) / len(values)
        if len(values) < 2 or not math.isfinite(mean):
            return Summary(mean, math.nan, len(values))
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return Summary(mean, math.sqrt(variance / len(values)), len(values))

    def metrics(self) -> dict[str, float]:
        """The means by name, for example ``attack_0.02_psnr``."""
        return {
            f"{condition.name.replace(' ', '_')}_{metric}": self.summary(condition, metric).mean
            for condition in self.conditions
            for metric in METRICS
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names, and one row per condition: each metric with its standard error."""
        columns = ["condition", "strength", "images", *METRICS]
        rows = []
        for condition in self.conditions:
            found = [self.summary(condition, metric) for metric in METRICS]
            cells = [f"{s.mean:.5g}" + (f" ± {s.error:.2g}" if math.isfinite(s.error) else "") for s in found]
            rows.append([condition.kind, f"{condition.strength:g}", str(found[0].count), *cells])
        return columns, rows

    def write(self, folder: Path) -> None:
        """Write ``robustness.csv``, ``robustness.svg`` and ``reconstructions.png``, each atomically."""
        with replacing(folder / "robustness.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([SweepRow._fields, *self.rows])
        for name, figure in self.figures().items():
            ending = "svg" if name == "robustness" else "png"
            with replacing(folder / f"{name}.{ending}") as part:
                figure.savefig(part, format=ending, dpi=150)

    def show(self, logger: Logger, step: int) -> None:
        """Log the table and the figures; for a ``CSVLogger``, figures exist only as files."""
        log_table(logger, "robustness/table", *self.table(), step)
        if isinstance(logger, CSV_LOGGERS):
            return
        for name, figure in self.figures().items():
            if isinstance(logger, TENSORBOARD_LOGGERS):
                logger.experiment.add_figure(f"robustness/{name}", figure, step)
            elif isinstance(logger, WANDB_LOGGERS):
                from PIL import Image  # installed with the wandb extra

                with io.BytesIO() as buffer:
                    figure.savefig(buffer, format="png", dpi=150)
                    logger.log_image(f"robustness/{name}", [Image.open(buffer).convert("RGB")])

    def figures(self) -> dict[str, Any]:
        """The figures by name; empty, with a warning, if matplotlib is missing."""
        kinds = [kind for kind in _KINDS if any(c.kind == kind for c in self.conditions)]
        try:
            figures = {}
            if kinds:
                panels = [[self._panel(kind, metric) for kind in kinds] for metric in _DRAWN]
                figures["robustness"] = panel_figure(panels)
            if self.shown:
                figures["reconstructions"] = _image_figure(self.shown)
            return figures
        except ImportError as error:
            rank_zero_warn(f"The sweep is not drawn. {error}")
            return {}

    def _panel(self, kind: str, metric: str) -> Panel:
        conditions = [
            c for c in self.conditions if c.kind == kind or (c.kind == "clean" and kind in ("attack", "noise"))
        ]
        conditions.sort(key=lambda condition: condition.strength)
        found = [self.summary(condition, metric) for condition in conditions]
        low, high = ([s.mean + sign * 2 * s.error for s in found] for sign in (-1, 1))
        line = Line("mean ± 2 standard errors", [c.strength for c in conditions], [s.mean for s in found], 1, low, high)
        return Panel([line], _KINDS[kind], METRICS[metric])


def _image_figure(shown: Sequence[ShownImage]) -> Any:
    clean = [image for image in shown if image.condition.kind == "clean"] or shown
    limit = 2 * max(float(image.error.max()) for image in clean)
    return error_map_figure(
        [(row.target, row.zero_filled, row.image) for row in shown],
        [row.error for row in shown],
        [row.condition.name for row in shown],
        ["reference", "zero-filled", "reconstruction", "error"],
        limit if math.isfinite(limit) and limit > 0 else 1.0,
    )


def _row(line: dict[str, str]) -> SweepRow:
    numbers = {name: float(line[name]) for name in ("strength", *METRICS)}
    return SweepRow(kind=line["kind"], set=int(line["set"]), index=int(line["index"]), **numbers)
