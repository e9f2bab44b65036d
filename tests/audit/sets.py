"""Result sets of 0 and 1, given by how often each (original, control, unlearned) occurs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_unlearn.audit import GateResult, Utility, gate, utility

Counts = Mapping[tuple[int, int, int], int]

SOUND: Counts = {(1, 0, 0): 86, (1, 1, 1): 6, (1, 0, 1): 2, (1, 1, 0): 2, (0, 0, 0): 4}
SOUND_OF_20: Counts = {(1, 0, 0): 17, (1, 1, 1): 1, (1, 0, 1): 1, (0, 0, 0): 1}
SUPPRESSED: Counts = {(1, 0, 0): 28, (1, 0, 1): 60, (1, 1, 1): 8, (0, 0, 0): 4}
UNTOUCHED: Counts = {(1, 0, 1): 88, (1, 1, 1): 8, (0, 0, 0): 4}
WRECK: Counts = {(1, 0, 0): 88, (1, 1, 0): 8, (0, 0, 0): 4}

RETAINED = {(1, 1): 86, (1, 0): 4, (0, 1): 2, (0, 0): 8}
"""(control, unlearned) of rows to keep: .90 and .88."""
RUINED = {(1, 1): 2, (1, 0): 88, (0, 0): 10}


def rows(counts: Mapping[tuple[int, ...], int]) -> list[list[float]]:
    """The columns of a table of counts."""
    return [list(map(float, column)) for column in zip(*(k for k, n in counts.items() for _ in range(n)), strict=True)]


def result_of(counts: Counts, name: str = "base", comparisons: int = 1, **changes: Any) -> GateResult:
    return gate(*rows(counts), name=name, comparisons=comparisons, **changes)


def kept(counts: Mapping[tuple[int, int], int], name: str = "retain") -> Utility:
    return utility(name, *rows(counts))
