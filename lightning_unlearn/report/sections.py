"""Sections of a report, and all kinds of parts that they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lightning_unlearn.report.charts import Bars, BarSeries, Curve, Heatmap, Series
from lightning_unlearn.report.fields import built, lists, unique
from lightning_unlearn.report.measurements import Anchors, Better, Interval, Measurement, Outcome
from lightning_unlearn.report.tables import Cell, ExampleRow, Examples, ImageRow, Images, Table

__all__ = [
    "Anchors",
    "BarSeries",
    "Bars",
    "Better",
    "Cell",
    "Curve",
    "ExampleRow",
    "Examples",
    "Heatmap",
    "ImageRow",
    "Images",
    "Interval",
    "Measurement",
    "Outcome",
    "Part",
    "Section",
    "Series",
    "Table",
    "Text",
    "built",
    "part_of",
]


@dataclass(frozen=True)
class Text:
    """Prose.

    Args:
        text: Paragraphs, with a blank line between two.
        title: Heading.
        items: Points of a list after it.
    """

    text: str
    title: str = ""
    items: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        lists(self, "items")


Part: TypeAlias = "Measurement | Table | Curve | Bars | Heatmap | Examples | Images | Text"

KINDS: dict[str, type[Any]] = {
    "measurement": Measurement,
    "table": Table,
    "curve": Curve,
    "bars": Bars,
    "heatmap": Heatmap,
    "examples": Examples,
    "images": Images,
    "text": Text,
}
"""What a part is in JSON, by the value of its key ``kind``."""


def part_of(record: Any, where: str) -> Any:
    """The part that ``{"kind": ..., ...}`` describes."""
    if not isinstance(record, Mapping) or record.get("kind") not in KINDS:
        kind = record.get("kind") if isinstance(record, Mapping) else record
        raise ValueError(f"{where}: a part has a 'kind' of {', '.join(KINDS)}, but got {kind!r}.")
    return built(KINDS[record["kind"]], {key: value for key, value in record.items() if key != "kind"}, where)


@dataclass(frozen=True)
class Section:
    """A chapter of a report.

    Args:
        id: Short name for machines: lower-case letters, digits and hyphens, unique in the report.
        title: Heading.
        parts: What it shows, in order.
        note: What the section is about, below the heading.

    Raises:
        ValueError: If the id has other characters, or two measurements have the same name and variant.
    """

    id: str
    title: str
    parts: Sequence[Part] = field(default_factory=list, metadata={"read": part_of})
    note: str = ""

    def __post_init__(self) -> None:
        lists(self, "parts")
        if not self.id or set(self.id) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
            raise ValueError(f"id must be lower-case letters, digits and hyphens, but got {self.id!r}.")
        unique(f"The section {self.id!r}", [part.key for part in self.parts if isinstance(part, Measurement)])

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements, in order."""
        return [part for part in self.parts if isinstance(part, Measurement)]
