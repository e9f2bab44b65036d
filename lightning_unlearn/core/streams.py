"""Rows of loaders that can only be read from the beginning: streams and custom loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_unlearn.core.batches import row_fingerprint, rows_at, rows_in
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.reading import join
from lightning_unlearn.core.samplers import detached, without_a_trace

__all__ = ["Stream", "StreamFacts", "content_of"]

_LONGEST = 1_000_000  # rows, after which a stream is taken to have no end


@dataclass
class StreamFacts:
    """Facts about a stream, collected in one pass.

    Args:
        sizes: Rows of each batch.
        content: A number for its rows in any order.
        first: Its first batches.
    """

    sizes: list[int] | None = None
    content: int | None = None
    first: list[Any] = field(default_factory=list)


class Stream:
    """Batches of a loader that gives the same rows whenever it is read from its beginning.

    A copy of the loader is read, with its own random numbers, so that the rows of the run do not change. Each pass is
    compared with the first one: it must give the same rows, in any order.

    Args:
        source: The loader.
        name: Its name, for errors.
        facts: What has been seen of it.

    Raises:
        MisconfigurationException: If it can be read only once, has no end, or other rows come in a later pass.
    """

    def __init__(self, source: Iterable[Any], name: str, facts: StreamFacts | None = None) -> None:
        self.source, self.name, self.facts = source, name, facts or StreamFacts()

    def sizes(self) -> list[int]:
        """Rows of each batch. The first call reads the stream."""
        if self.facts.sizes is None:
            self.facts.sizes = [rows_in(batch) or 1 for batch in self]
        return self.facts.sizes

    def content(self) -> int | None:
        """A number for the rows of the stream in any order."""
        self.sizes()
        return self.facts.content

    def first(self, limit: int) -> list[Any]:
        """The first batches, until so many rows have come; kept, so that they are the same whenever one asks."""
        counts = [rows_in(batch) or 1 for batch in self.facts.first]
        if sum(counts) < limit:
            self.facts.first, left = [], limit
            for batch in self._read():
                self.facts.first.append(batch)
                left -= rows_in(batch) or 1
                if left <= 0:
                    break
        return self.facts.first

    def at(self, chunks: Sequence[Sequence[int]]) -> list[Any]:
        """Rows by their numbers, in batches; they are kept in memory.

        Raises:
            MisconfigurationException: If batches can't be taken apart into rows.
        """
        wanted = {row for chunk in chunks for row in chunk}
        found: dict[int, Any] = {}
        start = 0
        for batch in self:
            size = rows_in(batch) or 1
            for row in wanted & set(range(start, start + size)):
                found[row] = rows_at(batch, slice(row - start, row - start + 1))
            start += size
        joined = [join([found[row] for row in chunk]) for chunk in chunks]
        if any(batch is None for batch in joined):
            raise MisconfigurationException(
                f"Some of the {self.name} rows are to be chosen, but they come in batches that can't be taken apart. "
                "Give them by a map-style dataset, or in batches whose tensors have one row for each."
            )
        return joined

    def __iter__(self) -> Iterator[Any]:
        content, rows = 0, 0
        for batch in self._read():
            rows += rows_in(batch) or 1
            if rows > _LONGEST:
                raise MisconfigurationException(
                    f"The {self.name} rows are to be read once, but after {_LONGEST} rows they have no end. Use a "
                    "stream with an end, or torch.utils.data.Subset of a map-style dataset."
                )
            content += content_of(batch)
            yield batch
        if self.facts.content is not None and content != self.facts.content:
            raise MisconfigurationException(
                f"The {self.name} rows are read several times, but {type(self.source).__name__} gave other rows than "
                "the first time. Let it start anew, with the same rows, whenever it is iterated over, or use a "
                "map-style dataset."
            )
        self.facts.content = content

    def _read(self) -> Iterator[Any]:
        try:
            source = detached(self.source)
        except TypeError:
            if iter(self.source) is self.source:
                raise MisconfigurationException(
                    f"The {self.name} rows come from a {type(self.source).__name__}, which can be read only once, but "
                    "they are read before they train. Use a loader that starts anew whenever it is iterated over."
                ) from None
            source = self.source
        return without_a_trace(source)


def content_of(batch: Any) -> int:
    """A number for the rows of a batch in any order; those of several batches add up."""
    return int(row_fingerprint(batch).sum()) + (rows_in(batch) or 1)
