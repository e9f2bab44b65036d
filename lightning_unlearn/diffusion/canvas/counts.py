"""Counts of right images in an answer set, and which of its images are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores

__all__ = ["AnswerCounts", "IncompleteAnswers", "answer_counts", "columns", "complete", "target_cells"]

_LISTED = 5


class IncompleteAnswers(ValueError):
    """Images of answer sets are missing, so the accuracies of models would be computed on different images.

    Args:
        missing: File names of the missing images of each model.
    """

    def __init__(self, missing: Mapping[str, Sequence[str]]) -> None:
        self.missing = {model: list(files) for model, files in missing.items()}
        """All file names that are missing, by model."""
        lines = [
            f"  {model}: {len(files)} ({', '.join(files[:_LISTED])}{', ...' if len(files) > _LISTED else ''})"
            for model, files in self.missing.items()
        ]
        super().__init__(
            "Images of answer sets are missing or not scored. Sample and score them, or name the seeds that are "
            "complete. All file names are in the error's attribute `missing`:\n" + "\n".join(lines)
        )


class AnswerCounts(NamedTuple):
    """Images of each style and object that was asked for, shape ``(S, O)``, int64."""

    style: Tensor
    """How many have the right style."""

    object: Tensor
    """How many have the right object."""

    both: Tensor
    """How many have both right."""

    n: Tensor
    """How many there are."""


def columns(names: CanvasNames, photo: bool = False) -> tuple[str, ...]:
    """All styles, then all objects: the columns of an accuracy matrix.

    Args:
        names: The styles and objects.
        photo: Whether the photos are among the styles.
    """
    return (*(names.all_styles if photo else names.styles), *names.objects)


def target_cells(names: CanvasNames, target: str, photo: bool = False) -> Tensor:
    """The styles and objects whose prompts ask for a target: its row or its column.

    Args:
        names: The styles and objects.
        target: A style or an object.
        photo: Whether the photos are among the styles.

    Returns:
        Shape ``(S, O)``, boolean.

    Raises:
        ValueError: If there is no such style or object.

    Example:
        >>> from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS
        >>> int((~target_cells(UNLEARN_CANVAS, "Van_Gogh")).sum()) * 5
        4900
    """
    kind = names.kind(target)
    cells = torch.zeros(len(names.all_styles if photo else names.styles), len(names.objects), dtype=torch.bool)
    cells.select(0 if kind == "style" else 1, names.of(kind).index(target)).fill_(True)
    return cells


def complete(
    models: Mapping[str, AnswerScores], seeds: Sequence[int], photo: bool = False, cells: Tensor | None = None
) -> None:
    """Refuse answer sets that lack an image.

    Args:
        models: Scores of each model.
        seeds: The seeds that each must have.
        photo: Whether photos are needed too.
        cells: The styles and objects of which images are needed, boolean of shape ``(S, O)``; by default all.

    Raises:
        IncompleteAnswers: If an image is missing.
        ValueError: If the models have other styles and objects, or there is no seed.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Accuracies need seeds, each once, but got {list(seeds)}.")
    first, *others = models.values()
    if any(scores.names != first.names for scores in others):
        raise ValueError("Answer sets are compared, but are of different styles and objects.")
    missing = {model: files for model, scores in models.items() if (files := _missing(scores, seeds, photo, cells))}
    if missing:
        raise IncompleteAnswers(missing)


def answer_counts(scores: AnswerScores, seeds: Sequence[int] | None = None, photo: bool = False) -> AnswerCounts:
    """Count the right images of each style and object; images that are missing count neither as right nor as wrong.

    Args:
        scores: Verdicts of the judges.
        seeds: The seeds to count, by default all.
        photo: Whether the photos are among the styles.
    """
    places = [scores.seeds.index(seed) for seed in (scores.seeds if seeds is None else seeds)]
    seen, style, object = (
        part[: None if photo else len(scores.names.styles), :, places]
        for part in (scores.seen, scores.style_right, scores.object_right)
    )
    return AnswerCounts(*((seen & part).sum(2) for part in (style, object, style & object, seen)))


def _missing(scores: AnswerScores, seeds: Sequence[int], photo: bool, cells: Tensor | None) -> list[str]:
    known = {seed: scores.seeds.index(seed) for seed in seeds if seed in scores.seeds}
    seen = scores.seen
    return [
        scores.names.file_name(style, object, seed)
        for s, style in enumerate(scores.names.all_styles if photo else scores.names.styles)
        for o, object in enumerate(scores.names.objects)
        if cells is None or cells[s, o]
        for seed in seeds
        if seed not in known or not seen[s, o, known[seed]]
    ]
