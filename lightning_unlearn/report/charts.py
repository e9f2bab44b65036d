"""Curves, scatter plots, bars and heat maps of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.report.fields import lists, named, number, unique

__all__ = ["BarSeries", "Bars", "Curve", "Heatmap", "Series"]

Role: TypeAlias = Literal["unlearned", "original", "control", "other", "front"]


@dataclass(frozen=True)
class Series:
    """One line of a curve, or one point of a scatter plot.

    Args:
        name: Its label.
        x: Places; ascending in a line.
        y: Values; ``None`` is a gap.
        low: Lower bounds of the values.
        high: Upper bounds.
        role: Which model it is of. The control is drawn dashed and grey; ``"front"`` is the Pareto front of a scatter.

    Raises:
        ValueError: If the lengths differ.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    role: Role = "other"

    def __post_init__(self) -> None:
        named(self)
        one_of("role", self.role, Role)
        for name in ("x", "y", "low", "high"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, [number(name, value) for value in values])
                if len(values) != len(self.x):
                    raise ValueError(f"{self.name!r} has {len(self.x)} places x, but {len(values)} of {name}.")
        if any(place is None for place in self.x):
            raise ValueError(f"{self.name!r} has places x that are not finite numbers.")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name!r} needs both bounds low and high, or neither.")


@dataclass(frozen=True)
class Curve:
    """Several named lines over a common axis, or points of two measurements.

    Args:
        title: What it shows.
        x_label: Name of the horizontal axis, with its unit.
        y_label: Name of the vertical axis, with its unit.
        series: The lines.
        plot: ``"line"``, or ``"scatter"`` for points with their names.
        unit: ``"share"`` where the values are in [0, 1] and read as percentages; ``"dB"`` for decibels, which have no
            zero for the axis to begin at.
        note: How to read it; it is the figure's text for those who can't see it.

    Raises:
        ValueError: If there are no series, or two have one name.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(metadata={"many": Series})
    plot: Literal["line", "scatter"] = "line"
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        one_of("plot", self.plot, ("line", "scatter"))
        lists(self, "series")
        if not self.series:
            raise ValueError(f"The curve {self.title!r} has no series.")
        unique(f"The curve {self.title!r}", [series.name for series in self.series])


@dataclass(frozen=True)
class BarSeries:
    """One bar for each name of a bar chart.

    Args:
        name: Its label.
        values: Lengths of the bars; ``None`` where there is none.
        low: Lower bounds of the values.
        high: Upper bounds.
        role: Which model it is of. The control is drawn grey.

    Raises:
        ValueError: If the lengths differ, or one bound is missing.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    role: Role = "other"

    def __post_init__(self) -> None:
        named(self)
        one_of("role", self.role, Role)
        for name in ("values", "low", "high"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, [number(name, value) for value in values])
                if len(values) != len(self.values):
                    raise ValueError(f"{self.name!r} has {len(self.values)} values, but {len(values)} of {name}.")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name!r} needs both bounds low and high, or neither.")


@dataclass(frozen=True)
class Bars:
    """Bars with error bars: several measurements of each of some names.

    Args:
        title: What they show.
        names: What is compared, such as methods, from top to bottom.
        x_label: Name of the axis along the bars, with its unit.
        series: The measurements; a bar for each name.
        unit: ``"share"`` where the values are in [0, 1] and read as percentages.
        note: How to read it; it is the figure's text for those who can't see it.

    Raises:
        ValueError: If there are no names or series, a series has another number of values than there are names, or
            two names are the same.
    """

    title: str
    names: list[str]
    x_label: str
    series: list[BarSeries] = field(metadata={"many": BarSeries})
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        lists(self, "names", "series")
        if not self.series or not self.names:
            raise ValueError(f"The bars {self.title!r} need a name and a series at least.")
        unique(f"The bars {self.title!r}", self.names)
        unique(f"The bars {self.title!r}", [series.name for series in self.series])
        for series in self.series:
            if len(series.values) != len(self.names):
                raise ValueError(
                    f"{series.name!r} of {self.title!r} has {len(series.values)} values, but there are "
                    f"{len(self.names)} names."
                )


@dataclass(frozen=True)
class Heatmap:
    """Values over two lists of names, as a grid of colours with the numbers written in.

    Args:
        title: What it shows.
        row_label: What a row is, such as ``"erased"``.
        column_label: What a column is, such as ``"asked for"``.
        rows: Names of the rows, from top to bottom.
        columns: Names of the columns.
        values: A list for each row, with ``None`` in empty cells.
        groups: The group of each column, such as ``"styles"``; neighbours of one group share a heading. Default: none.
        marked: Cells that are framed, each a row and a column, counted from 0.
        mark_means: What the frame means.
        scale: Values of the palest and of the strongest colour. Default: 0 and 1 for shares, else the extremes.
        unit: ``"share"`` where the values are in [0, 1]; the cells have percentages.
        note: How to read it.

    Raises:
        ValueError: If there is no cell, the values or groups don't fit the names, a name occurs twice, a frame is
            outside or has no meaning, or the scale is not ascending.
    """

    title: str
    row_label: str
    column_label: str
    rows: list[str]
    columns: list[str]
    values: Sequence[Sequence[float | None]]
    groups: list[str] = field(default_factory=list)
    marked: Sequence[Sequence[int]] = field(default_factory=list)
    mark_means: str = ""
    scale: Sequence[float] = field(default_factory=list)
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        lists(self, "rows", "columns", "groups", "marked", "scale")
        object.__setattr__(self, "values", [[number("A cell", value) for value in row] for row in self.values])
        object.__setattr__(self, "marked", [list(place) for place in self.marked])
        high, wide = len(self.rows), len(self.columns)
        unique(f"The rows of {self.title!r}", self.rows)
        unique(f"The columns of {self.title!r}", self.columns)
        if not high or not wide or len(self.values) != high or any(len(row) != wide for row in self.values):
            got = sorted({len(row) for row in self.values})
            raise ValueError(
                f"{self.title!r} needs {high} rows of {wide} values, one of each at least, but has {len(self.values)} "
                f"rows of {got} values."
            )
        if self.groups and len(self.groups) != wide:
            raise ValueError(f"{self.title!r} has {wide} columns, but {len(self.groups)} groups.")
        for place in self.marked:
            if len(place) != 2 or not (0 <= place[0] < high and 0 <= place[1] < wide):
                raise ValueError(f"{self.title!r} has {high} rows and {wide} columns, and no cell {place} to frame.")
        if self.marked and not self.mark_means:
            raise ValueError(f"{self.title!r} has framed cells. Say what a frame means: mark_means='erased concept'.")
        if self.scale and (len(self.scale) != 2 or not self.scale[0] < self.scale[1]):
            raise ValueError(f"scale must be two ascending numbers, but got {self.scale}.")

    @property
    def limits(self) -> tuple[float, float]:
        """Values of the palest and of the strongest colour."""
        if self.scale:
            return self.scale[0], self.scale[1]
        there = [value for row in self.values for value in row if value is not None]
        return (0.0, 1.0) if self.unit == "share" or not there else (min(there), max(there))

    def tone(self, value: float | None) -> float | None:
        """Strength of a cell's colour, in [0, 1]; ``None`` for an empty cell."""
        low, high = self.limits
        return None if value is None else min(max((value - low) / ((high - low) or 1), 0), 1)
