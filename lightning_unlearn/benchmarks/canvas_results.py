"""Results of the UnlearnCanvas benchmark, as read from its record and the scores that it names."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.core.intervals import Interval, bootstrap_mean, wilson
from lightning_unlearn.diffusion.canvas.names import CanvasNames, Kind, names_of
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix
from lightning_unlearn.diffusion.metrics.canvas_read_outs import pair_read_out
from lightning_unlearn.diffusion.metrics.canvas_sequence import SequentialErasure
from lightning_unlearn.diffusion.metrics.canvas_summary import canvas_summary

__all__ = ["ATTACKS", "KINDS", "CanvasResults", "CanvasRun", "mean_of"]

KINDS: tuple[Kind, Kind] = ("style", "object")
ATTACKS = ("pre_asr", "random_asr", "asr")


@dataclass(frozen=True, eq=False)
class CanvasRun:
    """A model from which a target was erased.

    Args:
        target: What was erased; for a pair, its style and its object.
        seed: Seed of the method.
        scores: Verdicts on its images.
        record: What else was measured: FID, seconds, bytes, attacks, families of prompts, side effects.
    """

    target: str | tuple[str, str]
    seed: int
    scores: AnswerScores
    record: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CanvasResults:
    """All results of a benchmark's folder.

    Args:
        record: The record of the benchmark: ``names``, ``seeds``, ``base``, ``methods``, and, if they were run,
            ``pairs`` and ``sequential``.
        folder: Folder to which the paths of scores in the record are relative.

    Raises:
        ValueError: If the names are unknown, or a file of scores is not of this benchmark.
        FileNotFoundError: If a file of scores is missing.
    """

    record: Mapping[str, Any]
    folder: str | os.PathLike[str]

    def __post_init__(self) -> None:
        names_of(self.record["names"])
        if not self.record["methods"]:
            raise ValueError("The record has no methods to report. Run one, or score an answer set.")

    @property
    def names(self) -> CanvasNames:
        """The styles and objects."""
        return names_of(self.record["names"])

    @cached_property
    def base(self) -> AnswerScores:
        """Verdicts on the images of the model before erasure."""
        return self.scores(self.record["base"]["scores"])

    @cached_property
    def methods(self) -> dict[str, list[CanvasRun]]:
        """The runs of each method, target by target in the order of the names."""
        order = [*self.names.styles, *self.names.objects]
        return {
            method: [self._run(target, run) for target in sorted(targets, key=order.index) for run in targets[target]]
            for method, targets in self.record["methods"].items()
        }

    @cached_property
    def pairs(self) -> dict[str, list[CanvasRun]]:
        """The runs of each method that erased a pair."""
        return {
            method: [self._run(_pair(pair), run) for pair, runs in pairs.items() for run in runs]
            for method, pairs in self.record.get("pairs", {}).items()
        }

    def runs(self, method: str, kind: Kind) -> list[CanvasRun]:
        """The runs of a method whose targets are styles or objects."""
        return [run for run in self.methods[method] if self.names.kind(str(run.target)) == kind]

    @cached_property
    def matrices(self) -> dict[str, dict[int, AccuracyMatrix]]:
        """The accuracy matrix of each method and seed."""
        found = {}
        for method, runs in self.methods.items():
            seeds = sorted({run.seed for run in runs})
            rows = {seed: {str(run.target): run.scores for run in runs if run.seed == seed} for seed in seeds}
            found[method] = {seed: AccuracyMatrix.from_scores(self.base, rows[seed]) for seed in seeds}
        return found

    def mean_matrix(self, method: str) -> AccuracyMatrix:
        """Mean of the matrices of a method over seeds; a target that some seeds lack is averaged over the others."""
        matrices = list(self.matrices[method].values())
        order = [*self.names.styles, *self.names.objects]
        targets = sorted({target for matrix in matrices for target in matrix.targets}, key=order.index)
        rows, without = [matrices[0].row()], []
        for target in targets:
            having = [matrix for matrix in matrices if target in matrix.targets]
            rows.append(torch.stack([matrix.row(target) for matrix in having]).mean(0))
            cra = [matrix.cra_without_target[matrix.targets.index(target)] for matrix in having]
            without.append(torch.stack(cra).mean())
        return AccuracyMatrix(self.names, tuple(targets), torch.stack(rows), torch.stack(without))

    @cached_property
    def summaries(self) -> dict[str, dict[str, Interval]]:
        """``style/UA`` and so on of each method, see [`canvas_summary`][lightning_unlearn.canvas_summary]."""
        return {method: canvas_summary(list(matrices.values())) for method, matrices in self.matrices.items()}

    @cached_property
    def base_summary(self) -> dict[str, Interval]:
        """The same of the model before erasure, as if it had unlearned each target of the methods."""
        targets = {str(run.target): self.base for runs in self.methods.values() for run in runs}
        return AccuracyMatrix.from_scores(self.base, targets).summary()

    def values(self, method: str, name: str, kind: Kind | None = None) -> list[float]:
        """A number of each run's record, such as ``"FID"``; runs without it are left out."""
        runs = self.methods[method] if kind is None else self.runs(method, kind)
        found = [run.record.get(name) for run in runs]
        return [float(value) for value in found if value is not None and math.isfinite(value)]

    def attack(self, method: str, kind: Kind) -> dict[str, tuple[int, Interval]]:
        """Number of attacked prompts, and rates of success with Wilson's interval, by the kind of attack."""
        attacked = [run.record["attack"] for run in self.runs(method, kind) if run.record.get("attack")]
        rates = {}
        for name in ATTACKS:
            counts = [attack[name] for attack in attacked if attack.get(name)]
            hits, n = (sum(count[place] for count in counts) for place in (0, 1))
            if n:
                rates[name] = (n, wilson(hits, n))
        return rates

    @cached_property
    def pair_means(self) -> dict[str, dict[str, Interval]]:
        """UA, SC, OC and UP of each method over pairs and seeds, with bootstrap intervals; Wilson's of a single run."""
        means = {}
        for method, runs in self.pairs.items():
            found = [
                pair_read_out(run.scores, run.target[0], run.target[1], seeds=self.record["seeds"]) for run in runs
            ]
            if len(found) == 1:
                means[method] = found[0]
            elif found:
                means[method] = {name: mean_of([run[name].value for run in found]) for name in found[0]}
        return means

    @cached_property
    def sequences(self) -> dict[str, SequentialErasure]:
        """The sequence of erasures of each method, a mean over seeds.

        Raises:
            ValueError: If the runs of a method have other targets, or another order.
        """
        found = {}
        for method, runs in self.record.get("sequential", {}).items():
            targets = runs[0]["targets"]
            if any(run["targets"] != targets for run in runs):
                raise ValueError(f"The sequences of {method} have other targets from seed to seed, so no mean.")
            each = [SequentialErasure.from_scores(targets, list(map(self.scores, run["scores"]))) for run in runs]
            ua, ra = (torch.stack([getattr(one, name) for one in each]).mean(0) for name in ("ua", "ra"))
            found[method] = SequentialErasure(tuple(targets), ua, ra)
        return found

    def _run(self, target: str | tuple[str, str], record: Mapping[str, Any]) -> CanvasRun:
        return CanvasRun(target, record["seed"], self.scores(record["scores"]), record)

    def scores(self, path: str) -> AnswerScores:
        """Verdicts in a file of the folder."""
        return AnswerScores.read(Path(self.folder, path), self.names)


def mean_of(values: Sequence[float]) -> Interval:
    """Mean of a number over runs with its bootstrap interval; a single run has no interval."""
    interval = bootstrap_mean(torch.tensor(values, dtype=torch.float64))
    return interval if len(values) > 1 else Interval(interval.value, math.nan, math.nan)


def _pair(name: str) -> tuple[str, str]:
    style, times, object = name.partition(" x ")
    if not times:
        raise ValueError(f"A pair is named '<style> x <object>', but got {name!r}.")
    return style, object
