"""Verdicts of a style judge and an object judge on an answer set, from which every accuracy is computed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_unlearn.core.files import write_text
from lightning_unlearn.diffusion.canvas.names import CanvasNames

__all__ = ["AnswerScores"]

_COLUMNS = ("style", "object", "seed", "predicted_style", "predicted_object")
_MISSING = -1


@dataclass(frozen=True)
class AnswerScores:
    """Verdicts of two judges on each image of an answer set.

    Args:
        names: The styles and objects.
        seeds: The seeds, in the order of the last axis.
        style: Predicted style of each image, the position in ``names.all_styles``, shape ``(S + 1, O, R)`` with the
            photos last (or ``(S, O, R)`` where there are none), int64; -1 where there is no image.
        object: Predicted object, the position in ``names.objects``, of the same shape.

    Raises:
        ValueError: If a shape does not fit the names and seeds.
    """

    names: CanvasNames
    seeds: tuple[int, ...]
    style: Tensor
    object: Tensor

    def __post_init__(self) -> None:
        shape = (len(self.names.all_styles), len(self.names.objects), len(self.seeds))
        for name in ("style", "object"):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, but has {tuple(getattr(self, name).shape)}.")

    @classmethod
    def empty(cls, names: CanvasNames, seeds: Sequence[int]) -> AnswerScores:
        """Scores of no image yet; fill ``style`` and ``object`` in place."""
        shape = (len(names.all_styles), len(names.objects), len(seeds))
        return cls(names, tuple(seeds), torch.full(shape, _MISSING), torch.full(shape, _MISSING))

    @property
    def seen(self) -> Tensor:
        """Whether there is an image, of the shape of the scores."""
        return (self.style != _MISSING) & (self.object != _MISSING)

    @property
    def style_right(self) -> Tensor:
        """Whether the style is the one asked for."""
        return self.style == torch.arange(len(self.names.all_styles))[:, None, None]

    @property
    def object_right(self) -> Tensor:
        """Whether the object is the one asked for."""
        return self.object == torch.arange(len(self.names.objects))[None, :, None]

    def missing(self, photo: bool = False) -> list[str]:
        """File names of the images that are missing.

        Args:
            photo: Whether the photos are expected.
        """
        styles = self.names.all_styles if photo else self.names.styles
        return [
            self.names.file_name(style, object, seed)
            for s, style in enumerate(styles)
            for o, object in enumerate(self.names.objects)
            for r, seed in enumerate(self.seeds)
            if not self.seen[s, o, r]
        ]

    def write(self, path: str | Path) -> None:
        """Write one line an image: style, object, seed, and what was predicted, as CSV."""
        file = io.StringIO()
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for s, o, r in self.seen.nonzero().tolist():
            rows.writerow(
                [
                    *(self.names.all_styles[s], self.names.objects[o], self.seeds[r]),
                    *(self.names.all_styles[self.style[s, o, r]], self.names.objects[self.object[s, o, r]]),
                ]
            )
        write_text(Path(path), file.getvalue())

    @classmethod
    def read(cls, path: str | Path, names: CanvasNames) -> AnswerScores:
        """Read what `write` wrote.

        Raises:
            ValueError: If a column is missing, a name unknown, or an image is there twice.
        """
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{path} has no column {missing[0]!r}. It needs {', '.join(_COLUMNS)}.")
            rows = list(reader)
        try:
            scores = cls.empty(names, sorted({int(row["seed"]) for row in rows}))
            for row in rows:
                at = (
                    *(names.all_styles.index(row["style"]), names.objects.index(row["object"])),
                    scores.seeds.index(int(row["seed"])),
                )
                if scores.seen[at]:
                    raise ValueError(f"the image of {row['style']}, {row['object']}, seed {row['seed']} is there twice")
                scores.style[at] = names.all_styles.index(row["predicted_style"])
                scores.object[at] = names.objects.index(row["predicted_object"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}.") from None
        return scores
