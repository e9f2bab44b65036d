"""Tables of a report: of values, of paired texts, and of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lightning_unlearn.report.fields import lists, number

__all__ = ["Cell", "ExampleRow", "Examples", "ImageRow", "Images", "Table"]

Cell: TypeAlias = "str | int | float | bool | None"


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
        lists(self, "columns", "secret")
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)
        wide = len(self.columns) or 2
        for place, row in enumerate(rows):
            if len(row) != wide:
                wanted = f"the {wide} columns {self.columns}" if self.columns else "a name and a value"
                raise ValueError(f"Row {place} of {self.title!r} has {len(row)} cells, but the table has {wanted}.")
        unknown = [name for name in self.secret if name not in self.columns]
        if unknown:
            raise ValueError(f"{self.title!r} has no columns {unknown} to hide. It has {self.columns}.")


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
        lists(self, "outputs", "hits")
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
        lists(self, "columns", "rows")
        for place, row in enumerate(self.rows):
            if len(row.outputs) != len(self.columns):
                raise ValueError(
                    f"Row {place} of {self.title!r} has {len(row.outputs)} outputs, but the columns {self.columns}."
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
        lists(self, "images", "captions", "hits")
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
        lists(self, "columns", "rows")
        for row in self.rows:
            if self.columns and len(row.images) != len(self.columns):
                raise ValueError(f"The row {row.name!r} has {len(row.images)} images, but the columns {self.columns}.")


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return number("A cell", value)
