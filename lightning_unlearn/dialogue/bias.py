"""Biases of judges: to the length of a dialogue, to its place in a list, and to the order of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unlearn.core.intervals import Interval, bootstrap
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.rating import finite_numbers
from lightning_unlearn.functional.dialogue.correlation import spearman

__all__ = ["LengthBias", "OrderBias", "dialogue_lengths", "length_bias", "order_bias", "position_bias"]


@dataclass(frozen=True)
class LengthBias:
    """How a judge's scores go with the length of dialogues.

    Args:
        spearman: Spearman's correlation of score and length.
        partial: The same among dialogues that people rate alike; ``None`` without ratings. Where people rate long
            dialogues lower too, the first one is not a bias, and this one is.
        human: Spearman's correlation of people's ratings and length; ``None`` without ratings.
    """

    spearman: Interval
    partial: Interval | None = None
    human: Interval | None = None


@dataclass(frozen=True)
class OrderBias:
    """How a judge's scores change with the order of examples, which should not matter.

    Args:
        shifts: Mean score under each order, minus that under all of them.
        spread: Mean over dialogues of the standard deviation of its scores under the orders.
        changed: Share of the dialogues whose scores differ by more than half a step of the scale.
    """

    shifts: tuple[Interval, ...]
    spread: Interval
    changed: Interval


def dialogue_lengths(dialogues: Sequence[Dialogue]) -> Tensor:
    """Characters of each dialogue and of the response that is rated, shape ``(N,)``, fp64."""
    texts = [[*(turn.text for turn in dialogue.turns), dialogue.response or ""] for dialogue in dialogues]
    return torch.tensor([sum(map(len, parts)) for parts in texts], dtype=torch.float64)


def length_bias(
    scores: Sequence[float] | Tensor,
    lengths: Sequence[float] | Tensor,
    human: Sequence[float] | Tensor | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> LengthBias:
    r"""Correlation of scores with length, and the partial correlation given the ratings of people.

    $$\rho_{sl \cdot h} = \frac{\rho_{sl} - \rho_{sh}\, \rho_{lh}}{\sqrt{(1 - \rho_{sh}^2)(1 - \rho_{lh}^2)}}$$

    Args:
        scores: The judge's scores, shape ``(N,)``.
        lengths: Lengths in any unit, such as `dialogue_lengths`, shape ``(N,)``.
        human: Mean ratings of people, shape ``(N,)``.
        level: Level of the bootstrap intervals, in (0, 1).
        draws: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are fewer than three dialogues, lengths differ, or a number is not finite.

    Example:
        >>> length_bias([1.0, 2.0, 3.0, 4.0], [10, 20, 30, 40]).spearman.value
        1.0
    """
    columns = (
        _columns(scores=scores, lengths=lengths)
        if human is None
        else _columns(scores=scores, lengths=lengths, ratings=human)
    )

    def statistics(rows: Tensor) -> Tensor:
        score, length, *rest = rows.unbind(1)
        found = [spearman(score, length)]
        if rest:
            rho_sh, rho_lh = spearman(score, rest[0]), spearman(length, rest[0])
            found += [(found[0] - rho_sh * rho_lh) / ((1 - rho_sh**2) * (1 - rho_lh**2)).sqrt(), rho_lh]
        return torch.stack(found)

    return LengthBias(*_intervals(columns, statistics, level, draws, seed))


def position_bias(
    scores: Sequence[float] | Tensor,
    positions: Sequence[float] | Tensor,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Spearman's correlation of scores with the place in a list, in which items stand in random order.

    Args:
        scores: The judge's scores, shape ``(N,)``.
        positions: Place of each item, shape ``(N,)``, such as its number in a list of candidates or in a run.
        level: Level of the bootstrap interval, in (0, 1).
        draws: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are fewer than three items, lengths differ, or a number is not finite.
    """
    columns = _columns(scores=scores, positions=positions)
    return _intervals(columns, lambda rows: spearman(rows[:, 0], rows[:, 1])[None], level, draws, seed)[0]


def order_bias(
    scores: Sequence[Sequence[float]] | Tensor,
    step: float = 1.0,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> OrderBias:
    """Change of scores between orders of the same examples, or between places of the same item.

    Args:
        scores: Scores of ``N`` dialogues under each of ``O`` orders, shape ``(O, N)``.
        step: Distance of two labels of the scale.
        level: Level of the bootstrap intervals over dialogues, in (0, 1).
        draws: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are fewer than two orders or three dialogues, or a number is not finite.

    Example:
        >>> bias = order_bias([[3.0, 3.0, 4.0], [4.0, 4.0, 5.0]])
        >>> [shift.value for shift in bias.shifts], bias.changed.value
        ([-0.5, 0.5], 1.0)
    """
    table = torch.as_tensor(scores, dtype=torch.float64).cpu()
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 3:
        raise ValueError(
            f"scores must be those of at least 3 dialogues under at least 2 orders, shape (orders, dialogues), but "
            f"have the shape {tuple(table.shape)}."
        )
    finite_numbers("scores", table)
    shifts = table - table.mean(0)
    spread = table.std(0, correction=0)[None]
    changed = (table.amax(0) - table.amin(0) > step / 2).double()[None]
    found = bootstrap(torch.cat([shifts, spread, changed]).T, lambda rows: rows.mean(0), level, draws, seed)
    return OrderBias(tuple(found[:-2]), found[-2], found[-1])


def _columns(**given: Sequence[float] | Tensor) -> Tensor:
    columns = {name: finite_numbers(name, values) for name, values in given.items()}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1 or min(counts.values()) < 3:
        raise ValueError(f"There must be as many of each, and at least 3, but there are {counts}.")
    return torch.stack(list(columns.values()), dim=1)


def _intervals(
    columns: Tensor, statistics: Callable[[Tensor], Tensor], level: float, draws: int, seed: int
) -> list[Interval]:
    """Intervals of correlations; NaN where the whole sample has none, and 0 in resamples that have none."""
    whole = statistics(columns)
    found = bootstrap(columns, lambda rows: statistics(rows).nan_to_num(0.0), level, draws, seed)
    return [
        Interval(torch.nan, torch.nan, torch.nan) if value.isnan() else three
        for value, three in zip(whole, found, strict=True)
    ]
