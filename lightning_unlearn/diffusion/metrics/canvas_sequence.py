"""Sequential erasure: several targets unlearned one after another, what comes back, and what is retained."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_unlearn.core.files import write_text
from lightning_unlearn.diffusion.canvas.counts import AnswerCounts, answer_counts, complete
from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.functional.diffusion.canvas_accuracy import concept_accuracies, rebound, retained_accuracy

__all__ = ["SequentialErasure"]


@dataclass(frozen=True, eq=False)
class SequentialErasure:
    r"""Accuracies after each of several requests to one model.

    After step $j$, $U_{ij}$ is the unlearning accuracy of target $i \le j$, and $\mathrm{RA}_j$ is the mean of IRA and
    CRA over what was not yet requested. Later requests may bring an earlier target back:
    $\mathrm{rebound}_i = \max_{j \ge i} U_{ij} - U_{iN}$.

    Args:
        targets: What was unlearned, in this order, each once.
        ua: Unlearning accuracies $U$ in [0, 1], with a row per target and a column per step, shape ``(N, N)``. Entries
            below the diagonal, where the target was not requested yet, are set to NaN.
        ra: Retain accuracies in [0, 1], shape ``(N,)``.

    Raises:
        ValueError: If a target is there twice, or a shape does not fit.

    Example:
        >>> ua = torch.tensor([[0.9, 0.8, 0.5], [0.0, 0.9, 0.9], [0.0, 0.0, 0.9]])
        >>> SequentialErasure(("Monet", "Cats", "Rust"), ua, torch.tensor([0.9, 0.8, 0.7])).rebound
        tensor([0.4000, 0.0000, 0.0000], dtype=torch.float64)
    """

    targets: tuple[str, ...]
    ua: Tensor
    ra: Tensor

    def __post_init__(self) -> None:
        size = len(self.targets)
        if not size or len(set(self.targets)) < size:
            raise ValueError(f"A sequence needs targets, each once, but got {list(self.targets)}.")
        for name, shape in {"ua": (size, size), "ra": (size,)}.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, but has {tuple(getattr(self, name).shape)}.")
            object.__setattr__(self, name, getattr(self, name).detach().cpu().double())
        below = torch.ones(size, size, dtype=torch.bool).tril(-1)
        object.__setattr__(self, "ua", self.ua.masked_fill(below, math.nan))

    @property
    def rebound(self) -> Tensor:
        """How far the unlearning accuracy of each target has fallen at the end from its best, shape ``(N,)``."""
        return rebound(self.ua)

    @classmethod
    def from_scores(
        cls,
        targets: Sequence[str],
        steps: Sequence[AnswerScores],
        include_target: bool = True,
        seeds: Sequence[int] | None = None,
        photo: bool = False,
    ) -> SequentialErasure:
        """Read accuracies from the verdicts on the answer set of each step.

        Args:
            targets: Styles and objects in the order of their erasure.
            steps: Scores of the model after each.
            include_target: Whether images in which a requested concept was asked for count for what is retained of
                the other kind.
            seeds: The seeds that count, by default those of the first step.
            photo: Whether prompts for photos count, see [`AccuracyMatrix`][lightning_unlearn.AccuracyMatrix].

        Raises:
            IncompleteAnswers: If an image is missing.
            ValueError: If there is not one answer set a target, a target is unknown or there twice, or all styles or
                objects are targets.
        """
        if not steps or len(steps) != len(targets):
            raise ValueError(f"A sequence has one answer set a target, but {len(steps)} for {len(targets)} targets.")
        names, seeds = steps[0].names, steps[0].seeds if seeds is None else seeds
        kinds = [names.kind(target) for target in targets]
        complete({f"step {j + 1}, {targets[j]}": scores for j, scores in enumerate(steps)}, seeds, photo)
        ua, ra = torch.full((len(targets), len(targets)), math.nan, dtype=torch.float64), []
        for j, scores in enumerate(steps):
            counts = answer_counts(scores, seeds, photo)
            for i in range(j + 1):
                hits = counts.style if kinds[i] == "style" else counts.object
                accuracy = concept_accuracies(hits, counts.n, kinds[i])
                ua[i, j] = 1 - accuracy[names.of(kinds[i]).index(targets[i])]
            ra.append(_retained(names, counts, targets[: j + 1], include_target))
        return cls(tuple(targets), ua, torch.stack(ra))

    def to_csv(self, path: str | Path) -> None:
        """Write a line a target, with its unlearning accuracy after each step and its rebound; RA is the last line."""
        file = io.StringIO()
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["target", *(f"after {target}" for target in self.targets), "rebound"])
        for target, row, back in zip(self.targets, self.ua.tolist(), self.rebound.tolist(), strict=True):
            lines.writerow([target, *("" if math.isnan(value) else repr(value) for value in row), repr(back)])
        lines.writerow(["RA", *map(repr, self.ra.tolist()), ""])
        write_text(Path(path), file.getvalue())


def _retained(names: CanvasNames, counts: AnswerCounts, requested: Sequence[str], include_target: bool) -> Tensor:
    styles = [names.styles.index(target) for target in requested if target in names.styles]
    objects = [names.objects.index(target) for target in requested if target in names.objects]
    return retained_accuracy(counts.style, counts.object, counts.n, styles, objects, include_target)
