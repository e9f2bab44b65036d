"""Answer sets made by hand."""

from __future__ import annotations

import torch

from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores

AB = CanvasNames(("A", "B"), ("x", "y"), photo="Photo")


def perfect(names: CanvasNames = AB, seeds: tuple[int, ...] = (188,)) -> AnswerScores:
    """Scores of images that all show what was asked for, photos included."""
    scores = AnswerScores.empty(names, seeds)
    scores.style[:] = torch.arange(len(names.all_styles))[:, None, None]
    scores.object[:] = torch.arange(len(names.objects))[None, :, None]
    return scores


def noise(seed: int, names: CanvasNames = AB, seeds: tuple[int, ...] = (188, 288, 588)) -> AnswerScores:
    """Scores of images that show anything."""
    draw, scores = torch.Generator().manual_seed(seed), AnswerScores.empty(names, seeds)
    scores.style[:] = torch.randint(len(names.all_styles), scores.style.shape, generator=draw)
    scores.object[:] = torch.randint(len(names.objects), scores.object.shape, generator=draw)
    return scores


def by_hand() -> AnswerScores:
    """Two styles, two objects and one seed: the style is wrong on (A, x), the object on (A, y)."""
    scores = perfect()
    scores.style[0, 0] = 1
    scores.object[0, 1] = 0
    return scores
