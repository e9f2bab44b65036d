"""Sections of a report and their typed parts: measurements, tables, curves, paired texts, images and prose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar

from lightning_unlearn.core.checks import inside, one_of

__all__ = [
    "Anchors",
    "Cell",
    "Curve",
    "ExampleRow",
    "Examples",
    "ImageRow",
    "Images",
    "Interval",
    "Measurement",
    "Part",
    "Section",
    "Series",
    "Table",
    "Text",
    "built",
    "part_of",
]

Outcome: TypeAlias = Literal["pass", "fail", "info", "not run"]
Better: TypeAlias = Literal["", "higher", "lower", "closer to control"]
Role: TypeAlias = Literal["unlearned", "original", "control", "other", "front"]
Cell: TypeAlias = "str | int | float | bool | None"

T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """Confidence interval; a one-sided one has a bound that is ``None``.

    Args:
        low: Lower bound.
        high: Upper bound.
        level: Confidence level in (0, 1).
        method: How it was computed, such as ``"normal"``, ``"BCa bootstrap over authors"`` or ``"Clopper-Pearson"``.

    Raises:
        ValueError: If both bounds are missing, they are in the wrong order, or the level is outside (0, 1).
    """

    low: float | None
    high: float | None
    level: float = 0.95
    method: str = ""

    def __post_init__(self) -> None:
        _numbers(self, "low", "high", "level")
        inside("level", self.level, 0, 1)
        if self.low is None and self.high is None:
            raise ValueError("An interval needs a lower or an upper bound. Leave the interval out where there is none.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"An interval needs low <= high, but got low={self.low} and high={self.high}.")


@dataclass(frozen=True)
class Anchors:
    """The same measurement on the models that a value is compared with.

    Args:
        original: On the model before unlearning.
        control: On the model that has never seen the forget rows, or was retrained without them.
        chance: Of a model that guesses.
    """

    original: float | None = None
    control: float | None = None
    chance: float | None = None

    def __post_init__(self) -> None:
        _numbers(self, "original", "control", "chance")


@dataclass(frozen=True)
class Measurement:
    """One number about the unlearned model, with all that is needed to judge it.

    A number that is not finite is kept as ``None`` with the reason "not finite", because JSON has no such numbers.

    Args:
        name: What was measured, such as ``"extraction strength"``. Within a section, name and variant are unique.
        value: The number; ``None`` where there is none.
        interval: Its confidence interval.
        n: Number of rows, samples or questions behind it.
        unit: ``"share"`` for a value in [0, 1] that is read as a percentage, ``"rows"`` for a count of rows out of
            ``n``, or a unit such as ``"s"``, ``"nats"`` or ``"bytes"``.
        variant: Which of several published definitions it is, such as ``"strict"`` or ``"ROUGE-L recall, stemmed"``.
        better: ``"higher"``, ``"lower"`` or ``"closer to control"``; ``""`` where neither is.
        anchors: The same number of the original model, of the control and of chance.
        outcome: ``"pass"`` or ``"fail"`` by a stated threshold, ``"info"`` where there is none, ``"not run"``.
        reason: The threshold behind an outcome, or why something was not run.

    Raises:
        ValueError: If an outcome is unknown, nothing was measured but no reason is given, or a count is negative.

    Example:
        >>> Measurement("extraction strength", 0.07, n=40, better="lower", anchors=Anchors(original=0.74, control=0.06))
        Measurement(name='extraction strength', value=0.07, ...)
        >>> Measurement("relearning", None, outcome="not run")
        Traceback (most recent call last):
        ValueError: 'relearning' has no value, so it needs a reason, such as reason='needs the depth full'.
    """

    name: str
    value: float | None
    interval: Interval | None = field(default=None, metadata={"one": Interval})
    n: int | None = None
    unit: str = ""
    variant: str = ""
    better: Better = ""
    anchors: Anchors = field(default_factory=Anchors, metadata={"one": Anchors})
    outcome: Outcome = "info"
    reason: str = ""

    def __post_init__(self) -> None:
        _named(self)
        one_of("better", self.better, Better)
        one_of("outcome", self.outcome, Outcome)
        if self.value is not None and _number("value", self.value) is None:
            object.__setattr__(self, "reason", self.reason or "not finite")
        _numbers(self, "value")
        if self.n is not None and (isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0):
            raise ValueError(f"n must be a number of rows, 0 or more, but got {self.n!r}.")
        if self.value is None and not self.reason:
            raise ValueError(
                f"{self.name!r} has no value, so it needs a reason, such as reason='needs the depth full'."
            )
        if self.outcome == "not run" and self.value is not None:
            raise ValueError(f"{self.name!r} has the value {self.value}, so its outcome can't be 'not run'.")
        if self.outcome == "pass" and self.value is None:
            raise ValueError(f"{self.name!r} has no value, so it can't pass. Use outcome='not run' or 'fail'.")

    @property
    def key(self) -> str:
        """Name and variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Args:
        title: What the table shows.
        columns: Names of the columns; none for pairs of a name and a value.
        rows: Strings, numbers, booleans, or ``None`` for an empty cell.
        note: How to read it.
        secret: Names of the columns with texts of rows to forget, which are hidden by default.

    Raises:
        ValueError: If a row has another length than the columns, or a secret column does not exist.
    """

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    secret: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _lists(self, "columns", "secret")
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)
        wide = len(self.columns) or 2
        for number, row in enumerate(rows):
            if len(row) != wide:
                wanted = f"the {wide} columns {self.columns}" if self.columns else "a name and a value"
                raise ValueError(f"Row {number} of {self.title!r} has {len(row)} cells, but the table has {wanted}.")
        unknown = [name for name in self.secret if name not in self.columns]
        if unknown:
            raise ValueError(f"{self.title!r} has no columns {unknown} to hide. It has {self.columns}.")


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
        _named(self)
        one_of("role", self.role, Role)
        for name in ("x", "y", "low", "high"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, [_number(name, value) for value in values])
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
        _lists(self, "series")
        if not self.series:
            raise ValueError(f"The curve {self.title!r} has no series.")
        _unique(f"The curve {self.title!r}", [series.name for series in self.series])


@dataclass(frozen=True)
class ExampleRow:
    """One input with the outputs of several models.

    Args:
        set: Name of the set, such as ``"forget"`` or ``"retain"``.
        input: Question or prompt.
        expected: Expected answer, or the concept.
        outputs: What came out, one for each column; ``None`` where it was not evaluated.
        hits: Whether each output is a hit; ``None`` where nothing was judged.
        secret: Whether the texts are those of a row to forget. Always true of sets with ``forget`` in their names.
    """

    set: str
    input: str
    expected: str
    outputs: Sequence[str | None]
    hits: Sequence[bool | None] = field(default_factory=list)
    secret: bool = False

    def __post_init__(self) -> None:
        _lists(self, "outputs", "hits")
        if not self.hits:
            object.__setattr__(self, "hits", [None] * len(self.outputs))
        if len(self.hits) != len(self.outputs):
            raise ValueError(f"An example has {len(self.outputs)} outputs, but {len(self.hits)} hits.")
        object.__setattr__(self, "secret", self.secret or "forget" in self.set)


@dataclass(frozen=True)
class Examples:
    """Paired texts of several models on the same inputs. A row to forget hides the rows of all sets with its input.

    Args:
        title: What they are.
        columns: The models, such as ``["before", "after", "retrained"]``.
        rows: The inputs with their outputs.
        hit_means: What a hit is, as it reads after a count: ``"answered correctly"``.
        note: How to read them.

    Raises:
        ValueError: If a row has another number of outputs than the columns, or hits have no meaning.
    """

    title: str
    columns: list[str]
    rows: list[ExampleRow] = field(metadata={"many": ExampleRow})
    hit_means: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _lists(self, "columns", "rows")
        for number, row in enumerate(self.rows):
            if len(row.outputs) != len(self.columns):
                raise ValueError(
                    f"Row {number} of {self.title!r} has {len(row.outputs)} outputs, but the columns {self.columns}."
                )
        if not self.hit_means and any(hit is not None for row in self.rows for hit in row.hits):
            raise ValueError(
                f"{self.title!r} has judged rows, but hit_means does not say what a hit is. Give it, such as "
                "hit_means='answered correctly'."
            )


@dataclass(frozen=True)
class ImageRow:
    """Images side by side.

    Args:
        name: Name of the row, such as a style.
        images: PNG images as data URIs, see [`png`][lightning_unlearn.png]; ``""`` where there is none.
        captions: A text below each image.
        hits: Whether each image shows what it should not; ``None`` where nothing was judged.
        secret: Whether the images are of what was to be forgotten. Always true of rows with ``forget`` in their names.
    """

    name: str
    images: list[str]
    captions: list[str] = field(default_factory=list)
    hits: Sequence[bool | None] = field(default_factory=list)
    secret: bool = False

    def __post_init__(self) -> None:
        _lists(self, "images", "captions", "hits")
        for name, values in (("captions", self.captions), ("hits", self.hits)):
            if values and len(values) != len(self.images):
                raise ValueError(f"The row {self.name!r} has {len(self.images)} images, but {len(values)} {name}.")
        foreign = [image[:24] for image in self.images if image and not image.startswith("data:image/")]
        if foreign:
            raise ValueError(f"Images are data URIs, see lightning_unlearn.png, but got {foreign[0]!r}.")
        object.__setattr__(self, "secret", self.secret or "forget" in self.name)


@dataclass(frozen=True)
class Images:
    """A grid of images, or a gallery with captions.

    Args:
        title: What they show.
        columns: Names of the columns; none for a gallery, whose images have captions.
        rows: The rows.
        note: How to read them.

    Raises:
        ValueError: If a row has another number of images than the columns.
    """

    title: str
    columns: list[str]
    rows: list[ImageRow] = field(metadata={"many": ImageRow})
    note: str = ""

    def __post_init__(self) -> None:
        _lists(self, "columns", "rows")
        for row in self.rows:
            if self.columns and len(row.images) != len(self.columns):
                raise ValueError(f"The row {row.name!r} has {len(row.images)} images, but the columns {self.columns}.")


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
        _lists(self, "items")


Part: TypeAlias = "Measurement | Table | Curve | Examples | Images | Text"

KINDS: dict[str, type[Any]] = {
    "measurement": Measurement,
    "table": Table,
    "curve": Curve,
    "examples": Examples,
    "images": Images,
    "text": Text,
}
"""What a part is in JSON, by the value of its key ``kind``."""


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
    parts: Sequence[Part] = field(default_factory=list)
    note: str = ""

    def __post_init__(self) -> None:
        _lists(self, "parts")
        if not self.id or set(self.id) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
            raise ValueError(f"id must be lower-case letters, digits and hyphens, but got {self.id!r}.")
        _unique(f"The section {self.id!r}", [part.key for part in self.parts if isinstance(part, Measurement)])

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements, in order."""
        return [part for part in self.parts if isinstance(part, Measurement)]


# ---- reading ---------------------------------------------------------------------------------------------------------


def part_of(record: Any, where: str) -> Any:
    """The part that ``{"kind": ..., ...}`` describes."""
    if not isinstance(record, Mapping) or record.get("kind") not in KINDS:
        kind = record.get("kind") if isinstance(record, Mapping) else record
        raise ValueError(f"{where}: a part has a 'kind' of {', '.join(KINDS)}, but got {kind!r}.")
    return built(KINDS[record["kind"]], {key: value for key, value in record.items() if key != "kind"}, where)


def built(cls: type[T], record: Any, where: str) -> T:
    """An instance of a dataclass from the JSON object that describes it, its nested ones included.

    Raises:
        ValueError: If a key is missing or unknown, or a value is wrong; it says where.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} must be an object, but got {record!r}.")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    needed = {name for name, f in known.items() if f.default is f.default_factory and f.init}
    missing, unknown = sorted(needed - record.keys()), sorted(record.keys() - known.keys())
    if missing or unknown:
        raise ValueError(f"{where} is not of this schema: missing keys {missing}, unknown keys {unknown}.")
    values = {name: _value(known[name], value, f"{where}.{name}") for name, value in record.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _value(of: Any, value: Any, where: str) -> Any:
    """A value of a field, with the nested objects built and its JSON type checked."""
    one, many = of.metadata.get("one"), of.metadata.get("many")
    kinds: dict[str, tuple[type[Any], str]] = {
        "str": (str, "a string"),
        "list": (list, "a list"),
        "Sequence": (list, "a list"),
        "dict": (dict, "an object"),
    }
    kind, name = kinds.get(str(of.type).partition("[")[0], (object, ""))
    fits = isinstance(value, kind) or (value is None and "None" in str(of.type))
    if not fits:
        raise ValueError(f"{where} must be {name}, but got {value!r}.")
    if one is not None and value is not None:
        return built(one, value, where)
    if many is not None:
        return [built(many, item, f"{where}[{number}]") for number, item in enumerate(value)]
    if of.name == "parts":
        return [part_of(item, f"{where}[{number}]") for number, item in enumerate(value)]
    return value


# ---- checks ----------------------------------------------------------------------------------------------------------


def _number(name: str, value: Any) -> float | None:
    """A finite number, or ``None``; also of a tensor or an array with one element."""
    if value is None:
        return None
    if isinstance(value, (bool, str)):
        raise ValueError(f"{name} must be a number, but got {value!r}.")
    value = float(value)
    return value if math.isfinite(value) else None


def _numbers(instance: Any, *names: str) -> None:
    for name in names:
        object.__setattr__(instance, name, _number(name, getattr(instance, name)))


def _lists(instance: Any, *names: str) -> None:
    for name in names:
        object.__setattr__(instance, name, list(getattr(instance, name)))


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return _number("A cell", value)


def _named(instance: Any) -> None:
    if not instance.name:
        raise ValueError(f"A {type(instance).__name__.lower()} needs a name.")


def _unique(owner: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{owner} has {twice} more than once. Tell them apart by name or variant.")
