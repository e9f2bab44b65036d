"""Accuracy matrix of UnlearnCanvas: models by concepts, from which UA, IRA and CRA are read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.core.tables import read_table
from lightning_unlearn.diffusion.canvas.counts import answer_counts, columns, complete
from lightning_unlearn.diffusion.canvas.names import CanvasNames, Kind
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.metrics.canvas_summary import MEASURES, WITHOUT_TARGET, alike, canvas_summary
from lightning_unlearn.functional.diffusion.canvas_accuracy import (
    canvas_accuracies,
    concept_accuracies,
    erasure_accuracies,
)

__all__ = ["BASE", "AccuracyMatrix"]

BASE = "None"
"""Name of the row of the base model, from which nothing was erased."""

_OTHER: dict[Kind, Kind] = {"style": "object", "object": "style"}


@dataclass(frozen=True, eq=False)
class AccuracyMatrix:
    r"""Accuracy of the base model and of each unlearned model on each style and object.

    UA, IRA and CRA of a target are computed from its row: one minus the accuracy on the target, and the mean accuracies
    over the other concepts of its kind and over those of the other kind.

    Args:
        names: The styles and objects.
        targets: The concept that each model other than the base has unlearned, each once.
        accuracy: Accuracies in [0, 1], the base first, then the targets, shape ``(1 + T, S + O)``; columns are styles,
            then objects, as `concepts` names them.
        cra_without_target: CRA of each target over the images in which it was not asked for, shape ``(T,)``; NaN where
            it is not known. It can't be read from the rest.
        photo: Whether photos are among the styles.

    Raises:
        ValueError: If a target is unknown or occurs twice, a shape does not fit, or a number is not an accuracy.

    Example:
        >>> names = CanvasNames(("A", "B"), ("x", "y"), photo=None)
        >>> accuracy = [[1.0, 1.0, 1.0, 1.0], [0.5, 1.0, 1.0, 0.5]]
        >>> matrix = AccuracyMatrix(names, ("A",), torch.tensor(accuracy), torch.tensor([1.0]))
        >>> matrix.read_out("A")
        {'UA': 0.5, 'IRA': 1.0, 'CRA': 0.75, 'CRA_without_target': 1.0}

    References:
        Zhang et al., *UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion
        Models*, arXiv:2402.11846.
    """

    names: CanvasNames
    targets: tuple[str, ...]
    accuracy: Tensor
    cra_without_target: Tensor
    photo: bool = False

    def __post_init__(self) -> None:
        for target in self.targets:
            self.names.kind(target)
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"Each target has one row, but one of {list(self.targets)} is there twice.")
        shapes = {
            "accuracy": (1 + len(self.targets), len(self.concepts)),
            "cra_without_target": (len(self.targets),),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, but has {tuple(getattr(self, name).shape)}.")
            object.__setattr__(self, name, getattr(self, name).detach().cpu().double())
        known = self.cra_without_target[~self.cra_without_target.isnan()]
        wrong = [x for part in (self.accuracy.flatten(), known) for x in part.tolist() if not 0 <= x <= 1]
        if wrong:
            raise ValueError(f"Accuracies are in [0, 1], but there is {wrong[0]:g}. Divide percentages by 100.")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the columns."""
        return columns(self.names, self.photo)

    @classmethod
    def from_scores(
        cls,
        base: AnswerScores,
        unlearned: Mapping[str, AnswerScores],
        seeds: Sequence[int] | None = None,
        photo: bool = False,
    ) -> AccuracyMatrix:
        """Read accuracies from the verdicts on answer sets.

        Args:
            base: Scores of the base model.
            unlearned: Scores of each unlearned model, by its target. Rows are in the order of the names.
            seeds: The seeds that count, by default those of the base.
            photo: Whether prompts for photos count: as one more style, and as images of the objects. The published
                figures are without.

        Raises:
            IncompleteAnswers: If an image is missing.
            ValueError: If a target is unknown, or an answer set has other styles and objects.
        """
        names, seeds = base.names, base.seeds if seeds is None else tuple(seeds)
        complete({BASE: base, **unlearned}, seeds, photo)
        known = columns(names)
        targets = tuple(sorted(unlearned, key=lambda name: known.index(name) if name in known else -1))
        without = [_without_target(unlearned[target], target, seeds, photo) for target in targets]
        rows = [_row(scores, seeds, photo) for scores in (base, *(unlearned[target] for target in targets))]
        return cls(names, targets, torch.stack(rows), _fp64(without), photo)

    @classmethod
    def mean(cls, matrices: Sequence[AccuracyMatrix]) -> AccuracyMatrix:
        """Mean of the matrices of several runs with the same targets, such as for a heatmap.

        Raises:
            ValueError: If there is none, or they are of other targets or concepts.
        """
        alike(matrices)
        first = matrices[0]
        if any(matrix.targets != first.targets for matrix in matrices):
            raise ValueError(f"A mean is over runs with the same targets, but got {[m.targets for m in matrices]}.")
        accuracy = torch.stack([matrix.accuracy for matrix in matrices]).mean(0)
        without = torch.stack([matrix.cra_without_target for matrix in matrices]).mean(0)
        return cls(first.names, first.targets, accuracy, without, first.photo)

    def targets_of(self, kind: Kind) -> tuple[str, ...]:
        """The targets that are styles or objects."""
        return tuple(target for target in self.targets if self.names.kind(target) == kind)

    def block(self, targets: Kind, concepts: Kind) -> Tensor:
        """Accuracies of the models of one kind of target on one kind of concept, such as for a heatmap.

        Returns:
            Shape ``(T, C)``, in the order of `targets_of` and of `concepts`.
        """
        rows = [1 + self.targets.index(target) for target in self.targets_of(targets)]
        return self.accuracy[rows][:, self._columns(concepts)]

    def row(self, target: str = BASE) -> Tensor:
        """Accuracies of a target's model, or of the base, on all concepts, shape ``(S + O,)``."""
        return self.accuracy[(BASE, *self.targets).index(one_of("target", target, (BASE, *self.targets)))]

    def read_out(self, target: str, base: bool = False) -> dict[str, float]:
        """UA, IRA and CRA of a target; and CRA without the target's images where it is known.

        Args:
            target: The target.
            base: Read them of the base model, as if it had unlearned the target.

        Raises:
            ValueError: If the target has no row.
        """
        own, other = self._columns(kind := self.names.kind(target)), self._columns(_OTHER[kind])
        row = self.row(BASE if base else target)
        found = erasure_accuracies(row[own], row[other], self.names.of(kind).index(target))
        values = dict(zip(MEASURES, map(float, found), strict=True))
        without = float("nan") if base else float(self.cra_without_target[self.targets.index(target)])
        return values if math.isnan(without) else {**values, WITHOUT_TARGET: without}

    def summary(self, base: bool = False) -> dict[str, Interval]:
        """Means over the targets of each kind, see [`canvas_summary`][lightning_unlearn.canvas_summary]."""
        return canvas_summary([self], base=base)

    def to_csv(self, path: str | Path) -> None:
        """Write a line a model, the base first: its accuracy in [0, 1] on each concept, and CRA without the target."""
        file = io.StringIO()
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["target", *self.concepts, WITHOUT_TARGET])
        without = [math.nan, *self.cra_without_target.tolist()]
        for name, row, last in zip((BASE, *self.targets), self.accuracy.tolist(), without, strict=True):
            lines.writerow([name, *map(repr, row), "" if math.isnan(last) else repr(last)])
        write_text(Path(path), file.getvalue())

    @classmethod
    def from_csv(cls, path: str | Path, names: CanvasNames, percent: bool = False) -> AccuracyMatrix:
        """Read what `to_csv` wrote, or a matrix that others published.

        Columns may be in any order, and CRA without the target's images may be left out. A column for photos counts.

        Args:
            path: Table with a header, the first column being ``target``, the base's row being ``None``.
            names: The styles and objects.
            percent: Whether numbers are percentages.

        Raises:
            ValueError: If a column, the base's row or a cell is missing, a name unknown, or a number no accuracy.
        """
        table = read_table(Path(path))
        if not all(isinstance(row, dict) for row in table):
            raise ValueError(f"{path} is not read as a table with a header. Save it as .csv.")
        photo = bool(table) and names.photo in table[0]
        concepts = columns(names, photo)
        _check_table(path, table, concepts)
        rows = {row["target"]: row for row in table}
        targets = tuple(name for name in rows if name != BASE)
        scale = 100 if percent else 1
        try:
            accuracy = [[float(rows[name][concept]) / scale for concept in concepts] for name in (BASE, *targets)]
            without = [float(rows[name].get(WITHOUT_TARGET) or math.nan) / scale for name in targets]
            return cls(names, targets, _fp64(accuracy), _fp64(without), photo)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _columns(self, kind: Kind) -> slice:
        objects = len(self.concepts) - len(self.names.objects)
        return slice(objects) if kind == "style" else slice(objects, None)


def _fp64(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _row(scores: AnswerScores, seeds: Sequence[int], photo: bool) -> Tensor:
    counts = answer_counts(scores, seeds, photo)
    return torch.cat(
        [concept_accuracies(counts.style, counts.n, "style"), concept_accuracies(counts.object, counts.n, "object")]
    )


def _without_target(scores: AnswerScores, target: str, seeds: Sequence[int], photo: bool) -> float:
    counts, kind = answer_counts(scores, seeds, photo), scores.names.kind(target)
    place = scores.names.of(kind).index(target)
    return float(canvas_accuracies(counts.style, counts.object, counts.n, kind, place, include_target=False).cra)


def _check_table(path: str | Path, table: Sequence[Mapping[str, str]], concepts: Sequence[str]) -> None:
    header = list(table[0]) if table else []
    listed = [row.get("target", "") for row in table]
    problems = {
        "has no column": [name for name in ("target", *concepts) if name not in header],
        "has columns of no style or object:": sorted({*header} - {"target", *concepts, WITHOUT_TARGET}),
        "has two rows for": sorted({name for name in listed if listed.count(name) > 1}),
        "has no row for the base model, named": [] if BASE in listed else [BASE],
        "has empty cells in the rows": [
            row.get("target", "") for row in table if any(row.get(concept) in ("", None) for concept in concepts)
        ],
    }
    for problem, found in problems.items():
        if found:
            raise ValueError(f"{path} {problem} {', '.join(found)}.")
