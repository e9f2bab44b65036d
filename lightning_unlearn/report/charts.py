"""Curves and scatter plots of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.report.fields import lists, named, number, unique

__all__ = ["Curve", "Series"]

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
        unit: ``"share"`` where the values are in [0, 1] and read as percentages.
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
