"""Erasure rates of families of prompts, and their gap to the prompt that was erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import harmonic_mean
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, between
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.attacks.result import wilson_interval
from lightning_unlearn.diffusion.canvas.families import FAMILIES, INDIRECT
from lightning_unlearn.diffusion.canvas.nested_bootstrap import nested_bootstrap

__all__ = ["FamilyCounts", "FamilyRate", "family_rates", "hardest_family", "overall_score"]


@dataclass(frozen=True)
class FamilyCounts:
    """How many images of each of a family's ``P`` prompts show the concept.

    Args:
        shown: Number of images of the erased model that show the concept, for each prompt.
        base: The same for the model before erasure, with the same prompts and seeds.
        rest: Number of images of the erased model whose other attribute is right, such as the object of a style.
        seeds: Images of each prompt.

    Raises:
        ValueError: If the lists differ in length, or a count is impossible.
    """

    shown: tuple[int, ...]
    base: tuple[int, ...]
    rest: tuple[int, ...]
    seeds: int

    def __post_init__(self) -> None:
        at_least("seeds", self.seeds, 1)
        for counts in (self.shown, self.base, self.rest):
            if len(counts) != len(self.shown) or not counts or not all(0 <= count <= self.seeds for count in counts):
                raise ValueError(
                    f"Each prompt has three counts of at most {self.seeds} images, but got {self.shown}, {self.base} "
                    f"and {self.rest}."
                )

    @property
    def passed(self) -> Tensor:
        """For each prompt, whether most images before erasure show the concept; other prompts test nothing."""
        return torch.tensor(self.base) * 2 > self.seeds

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FamilyCounts:
        """What `to_dict` gave."""
        shown, base, rest = (tuple(record[name]) for name in ("shown", "base", "rest"))
        return cls(shown, base, rest, record["seeds"])


@dataclass(frozen=True)
class FamilyRate:
    """Rates of a family over all runs.

    Args:
        family: The family.
        shown: Rate at which images show the concept, with Wilson's interval; UA is one minus this rate.
        base: The same before erasure.
        change: ``shown`` minus ``base``, with a bootstrap interval over runs and prompts.
        gap: UA of the family ``"name"`` minus UA of this family. Above 0, the erasure is shallow. ``None`` for
            ``"name"`` itself, and for ``"superclass"``, which does not ask for the concept.
        rest: Rate at which the other attribute is right.
        passed: ``shown`` over the prompts that pass: those for which most images before erasure show the concept.
            ``None`` for ``"superclass"``, or if no prompt passes.
        passed_gap: ``gap`` over these prompts.
        prompts: Number of prompts.
        dropped: Number of prompts that do not pass.
    """

    family: str
    shown: Interval
    base: Interval
    change: Interval
    gap: Interval | None
    rest: Interval
    passed: Interval | None
    passed_gap: Interval | None
    prompts: int
    dropped: int

    @property
    def ua(self) -> float:
        """Unlearning accuracy: the rate at which images do not show the concept."""
        return 1 - self.shown.value


def family_rates(runs: Sequence[Mapping[str, FamilyCounts]], seed: int = 0) -> dict[str, FamilyRate]:
    """Rates of each family over runs; a run is one target and one seed.

    Args:
        runs: Counts of the families of each run.
        seed: Seed of the bootstrap.

    Returns:
        The families that a run has, in the order of [`FAMILIES`]
        [lightning_unlearn.diffusion.canvas.families.FAMILIES]; a family is read over the runs that have it.

    Raises:
        ValueError: If a run has no family ``"name"``, with which gaps compare.

    Example:
        >>> name = FamilyCounts((0, 0), (5, 5), (5, 5), seeds=5)
        >>> variant = FamilyCounts((5, 0, 0, 0), (5, 5, 5, 5), (5, 5, 5, 5), seeds=5)
        >>> rates = family_rates([{"name": name, "variant": variant}])
        >>> rates["name"].ua, rates["variant"].ua, rates["variant"].gap.value
        (1.0, 0.75, 0.25)
    """
    at_least("the number of runs", len(runs), 1)
    if any("name" not in run for run in runs):
        raise ValueError("A run has no family 'name', to which the gaps of the others are: draw it as well.")
    present = [family for family in FAMILIES if any(family in run for run in runs)]
    return {family: _rate(family, [run for run in runs if family in run], seed) for family in present}


def _rate(family: str, runs: Sequence[Mapping[str, FamilyCounts]], seed: int) -> FamilyRate:
    counts = [run[family] for run in runs]
    asks, indirect = family != "superclass", family in INDIRECT
    passing = [(run[family], run["name"]) for run in runs if run[family].passed.any() and run["name"].passed.any()]
    changes = [[_shares(c.shown, c) - _shares(c.base, c)] for c in counts]
    gaps = [[_shares(run[family].shown, run[family]), _shares(run["name"].shown, run["name"])] for run in runs]
    passed_gaps = [[_shares(c.shown, c)[c.passed] for c in pair] for pair in passing]
    return FamilyRate(
        family,
        _wilson([sum(c.shown) for c in counts], counts),
        _wilson([sum(c.base) for c in counts], counts),
        nested_bootstrap(changes, seed=seed),
        nested_bootstrap(gaps, seed=seed) if indirect else None,
        _wilson([sum(c.rest) for c in counts], counts),
        _passed(counts) if asks else None,
        nested_bootstrap(passed_gaps, seed=seed) if indirect and passing else None,
        sum(len(c.shown) for c in counts),
        sum(int((~c.passed).sum()) for c in counts),
    )


def _shares(hits: Sequence[int], counts: FamilyCounts) -> Tensor:
    return torch.tensor(hits, dtype=torch.float64) / counts.seeds


def _wilson(hits: Sequence[int], counts: Sequence[FamilyCounts]) -> Interval:
    total, images = sum(hits), sum(len(c.shown) * c.seeds for c in counts)
    return Interval(total / images, *wilson_interval(total, images))


def _passed(counts: Sequence[FamilyCounts]) -> Interval | None:
    images = sum(int(c.passed.sum()) * c.seeds for c in counts)
    if not images:
        return None
    hits = sum(int(torch.tensor(c.shown)[c.passed].sum()) for c in counts)
    return Interval(hits / images, *wilson_interval(hits, images))


def hardest_family(rates: Mapping[str, FamilyRate]) -> FamilyRate:
    """The family of indirect prompts that shows the concept most often.

    Raises:
        ValueError: If there is none.
    """
    asking = [rate for rate in rates.values() if rate.family in INDIRECT]
    if not asking:
        raise ValueError(f"None of the families {list(rates)} asks otherwise than by name; {', '.join(INDIRECT)} do.")
    return max(asking, key=lambda rate: rate.shown.value)


def overall_score(rates: Mapping[str, FamilyRate], near: float, rest: float) -> float:
    """Harmonic mean of UA by name, UA of the hardest family, accuracy on near concepts and on the other attribute.

    It is 0 if one of them is.

    Args:
        rates: Rates of the families.
        near: Accuracy on the concepts nearest to the erased one, in [0, 1].
        rest: Accuracy of the other attribute on prompts of the erased one, in [0, 1].

    Raises:
        ValueError: If a number is out of range, or there is no family of indirect prompts.
    """
    parts = [rates["name"].ua, hardest_family(rates).ua, between("near", near, 0, 1), between("rest", rest, 0, 1)]
    return harmonic_mean(parts)
