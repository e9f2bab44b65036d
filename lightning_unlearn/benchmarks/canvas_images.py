"""Images of answer sets in a report of UnlearnCanvas: what erased models draw for a target, and for another concept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_unlearn.benchmarks.canvas_results import CanvasResults
from lightning_unlearn.benchmarks.canvas_tables import BEFORE
from lightning_unlearn.report.images import png
from lightning_unlearn.report.sections import ImageRow, Images, Section

__all__ = ["image_section"]

COLUMNS, SIDE = 8, 96


def image_section(results: CanvasResults) -> Section | None:
    """A grid of images by model and target; ``None`` if the record has no folders of images, or they are gone.

    Args:
        results: The results; ``answers`` of the base and of the runs are the folders of their images.
    """
    targets = list(dict.fromkeys(str(run.target) for runs in results.methods.values() for run in runs))[:COLUMNS]
    parts = []
    for title, other in (("Asked for the erased concept", False), ("Asked for another concept of its kind", True)):
        asked = {target: _asked(results, target, other) for target in targets}
        rows = [_row(results, BEFORE, dict.fromkeys(targets, results.record["base"]), asked)]
        for method, runs in results.methods.items():
            first = {str(run.target): run.record for run in reversed(runs)}
            rows.append(_row(results, method, first, asked))
        if any(image for row in rows for image in row.images):
            shown = [f"{target}: {_words(*asked[target])}" if other else target for target in targets]
            note = "Columns are the erased concepts" + (", and what was asked for." if other else ".")
            parts.append(Images(title, shown, rows, f"{note} All images are of seed {results.record['seeds'][0]}."))
    return Section("images", "Images", parts) if parts else None


def _asked(results: CanvasResults, target: str, other: bool) -> tuple[str, str]:
    """Style and object of the image of a target, or of the concept after it."""
    names = results.names
    kind = names.kind(target)
    known = names.of(kind)
    concept = known[(known.index(target) + other) % len(known)]
    return (concept, names.objects[0]) if kind == "style" else (names.styles[0], concept)


def _words(style: str, object: str) -> str:
    return f"{object}, {style}".replace("_", " ")


def _row(
    results: CanvasResults, name: str, records: Mapping[str, Mapping[str, Any]], asked: Mapping[str, tuple[str, str]]
) -> ImageRow:
    images = []
    for target, (style, object) in asked.items():
        folder = records.get(target, {}).get("answers")
        files = [
            Path(results.folder, folder, results.names.file_name(style, object, results.record["seeds"][0], suffix))
            for suffix in (".png", ".jpg")
            if folder
        ]
        there = [file for file in files if file.exists()]
        images.append(_thumbnail(there[0]) if there else "")
    return ImageRow(name, images)


def _thumbnail(file: Path) -> str:
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return png(torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255)
