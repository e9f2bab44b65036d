"""Readers that give each row of a run once and in order, shared by the replicas of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_unlearn.core.batches import rows_in
from lightning_unlearn.core.distributed import gather_objects, replica
from lightning_unlearn.core.lightning import COMBINED_LOADERS, MisconfigurationException, Trainer
from lightning_unlearn.core.pairing import PairLoader
from lightning_unlearn.core.progress import progress
from lightning_unlearn.core.reading import join
from lightning_unlearn.core.samplers import chunked, sampled_rows, without_a_trace
from lightning_unlearn.core.streams import Stream, StreamFacts, content_of
from lightning_unlearn.core.transfer import transferred

__all__ = ["RowLoader", "RunRows", "drawn_rows", "mixed_rows", "on_device", "row_loader", "written_date"]

T = TypeVar("T")

_STREAMS: WeakKeyDictionary[Any, dict[str, StreamFacts]] = WeakKeyDictionary()


class RowLoader(ABC):
    """Rows of one role in batches, each row once and always in the same order. Iterating gives batches on the CPU."""

    streamed = False
    """Whether rows can only be read from the first one on."""

    @property
    @abstractmethod
    def chunks(self) -> list[list[int]]:
        """The row numbers of each batch."""

    @abstractmethod
    def at(self, numbers: Sequence[int]) -> Iterator[Any]:
        """Batches by their numbers, which ascend; the last one may come again."""

    @abstractmethod
    def select(self, chunks: list[list[int]]) -> RowLoader:
        """The same rows, or some of them, in other batches."""

    @abstractmethod
    def first(self, limit: int) -> RowLoader:
        """The first batches, until so many rows have come."""

    def content(self) -> int | None:
        """A number for what the rows hold, where each process has a loader of its own rows; else ``None``."""
        return None

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(map(len, self.chunks))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.chunks)

    def __iter__(self) -> Iterator[Any]:
        return self.at(range(len(self)))


class _Table(RowLoader):
    """Rows of a map-style dataset."""

    def __init__(
        self, dataset: Any, keys: Sequence[Any], chunks: list[list[int]], options: dict[str, Any], fetch: str = "rows"
    ) -> None:
        self.dataset, self.keys, self.options, self.fetch = dataset, keys, options, fetch
        self._chunks = chunks

    @property
    def chunks(self) -> list[list[int]]:
        return self._chunks

    def at(self, numbers: Sequence[int]) -> Iterator[Any]:
        asked = [[self.keys[row] for row in self._chunks[number]] for number in numbers]
        if self.fetch == "rows":
            loader: Any = DataLoader(self.dataset, batch_sampler=asked, **self.options)
        else:
            items: list[Any] = asked if self.fetch == "batch" else [key for (key,) in asked]
            loader = DataLoader(self.dataset, batch_size=None, sampler=items, **self.options)
        # torch's loader draws a seed from the random numbers of the run, also where it does not shuffle.
        return iter(loader) if isinstance(self.keys, range) else without_a_trace(loader)

    def select(self, chunks: list[list[int]]) -> RowLoader:
        return _Table(self.dataset, self.keys, chunks, self.options, self.fetch)

    def first(self, limit: int) -> RowLoader:
        return self.select(_until(self._chunks, list(map(len, self._chunks)), limit))


class _Streamed(RowLoader):
    """Rows of a loader that is read from its beginning."""

    streamed = True

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    @property
    def chunks(self) -> list[list[int]]:
        return _numbered(self.stream.sizes())

    def at(self, numbers: Sequence[int]) -> Iterator[Any]:
        left = list(numbers)
        for number, batch in enumerate(self.stream):  # to its end, where it is held against the first pass
            while left and left[0] == number:
                left.pop(0)
                yield batch

    def select(self, chunks: list[list[int]]) -> RowLoader:
        return _Held(self.stream.at(chunks))

    def first(self, limit: int) -> RowLoader:
        return _Held(self.stream.first(limit))

    def content(self) -> int | None:
        return self.stream.content()

    def __iter__(self) -> Iterator[Any]:
        self.stream.sizes()  # a first pass, against which this one is held
        return iter(self.stream)


class _Held(RowLoader):
    """Batches that are kept in memory."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    @property
    def chunks(self) -> list[list[int]]:
        return _numbered([rows_in(batch) or 1 for batch in self.batches])

    def at(self, numbers: Sequence[int]) -> Iterator[Any]:
        return (self.batches[number] for number in numbers)

    def select(self, chunks: list[list[int]]) -> RowLoader:
        return _Held(Stream(self.batches, "chosen").at(chunks))

    def first(self, limit: int) -> RowLoader:
        return _Held(_until(self.batches, list(map(len, self.chunks)), limit))

    def content(self) -> int | None:
        return sum(map(content_of, self.batches))


def _numbered(sizes: list[int]) -> list[list[int]]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _until(batches: list[T], sizes: list[int], limit: int) -> list[T]:
    before = [end - size for end, size in zip(torch.tensor(sizes).cumsum(0).tolist(), sizes, strict=True)]
    return [batch for batch, start in zip(batches, before, strict=True) if start < limit]


# ---- the rows of a loader --------------------------------------------------------------------------------------------


def row_loader(
    train_dataloader: Any, role: str, chunks: list[list[int]] | None = None, everywhere: bool = True
) -> RowLoader | None:
    """The rows that a role's loader yields, each once, from whatever the run trains on.

    See [`sampled_rows`][lightning_unlearn.core.samplers.sampled_rows] for what samplers yield. Streams, and loaders
    that are no torch ``DataLoader`` or iterate in a way of their own, are read from the beginning.

    Args:
        train_dataloader: A `PairLoader`, a dict of loaders, a ``CombinedLoader`` of one, or a loader whose batches are
            dicts of roles.
        role: ``"forget"``, ``"retain"``, or a role that follows the forget rows in a `PairLoader`, such as ``"idk"``.
        chunks: Row numbers of each batch; by default all rows in batches of the loader's own size.
        everywhere: Whether all processes ask at once: then the rows are those of all processes together.

    Returns:
        The rows, or ``None`` where there is no such role, or a list of loaders for it.

    Raises:
        MisconfigurationException: If a sampler's rows can't be told.
    """
    if isinstance(train_dataloader, COMBINED_LOADERS):
        train_dataloader = train_dataloader.iterables
    if isinstance(train_dataloader, PairLoader):
        part = train_dataloader.part(role)
        if part is None:
            return None
        sizes = train_dataloader.sampler.batch_sizes  # type: ignore[attr-defined]
        each = chunked(range(len(part)), sizes.get(role, sizes["forget"]))
        options = {"collate_fn": train_dataloader.dataset.collate}  # type: ignore[attr-defined]
        return _Table(part, range(len(part)), chunks or each, options)
    if isinstance(train_dataloader, Mapping):
        rows = _rows_of(train_dataloader.get(role), role, everywhere)
    else:
        rows = _part_of(train_dataloader, role, everywhere)
    return rows if rows is None or chunks is None else rows.select(chunks)


def _rows_of(loader: Any, name: str, everywhere: bool) -> RowLoader | None:
    if isinstance(loader, RowLoader):
        return loader
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and _plainly_iterated(loader):
        plan = sampled_rows(loader, everywhere)
        return _Table(loader.dataset, plan.keys, plan.chunks, _options(loader), plan.fetch)
    if isinstance(loader, (Mapping, list, tuple, str)) or not hasattr(type(loader), "__iter__"):
        return None
    return _Streamed(Stream(loader, name, _facts(loader, name)))


def written_date(train_dataloader: Any) -> str | None:
    """The date that is written in the rows of a run, where their dataset says so (``date``)."""
    if isinstance(train_dataloader, COMBINED_LOADERS):
        train_dataloader = train_dataloader.iterables
    if isinstance(train_dataloader, PairLoader):
        datasets = [train_dataloader.part(role) for role in train_dataloader.sampler.sizes]  # type: ignore[attr-defined]
    else:
        loaders = train_dataloader.values() if isinstance(train_dataloader, dict) else ()
        datasets = [getattr(loader, "dataset", None) for loader in loaders]
    dates = (getattr(dataset, "date", None) for dataset in datasets)
    return next((date for date in dates if isinstance(date, str)), None)


def _part_of(loader: Any, role: str, everywhere: bool) -> RowLoader | None:
    """The rows of one role of a loader whose batches are dicts of roles."""
    rows = _rows_of(loader, role, everywhere)
    if rows is None:
        return None
    first = next(without_a_trace(rows.first(1)), None)
    if not isinstance(first, Mapping) or first.get(role) is None:
        return None
    return _Streamed(Stream(_Part(rows, role), role, _facts(loader, role)))


class _Part:
    """One role of batches that are dicts of roles."""

    def __init__(self, batches: Iterable[Any], role: str) -> None:
        self.batches, self.role = batches, role

    def __iter__(self) -> Iterator[Any]:
        return (batch[self.role] for batch in self.batches)


def _facts(loader: Any, name: str) -> StreamFacts:
    try:
        return _STREAMS.setdefault(loader, {}).setdefault(name, StreamFacts())
    except TypeError:  # it has no hash, or can't be referred to weakly
        return StreamFacts()


def _plainly_iterated(loader: DataLoader) -> bool:
    """Whether nobody stands between torch's iteration and the batches; torchdata's loader only remembers its place."""
    kinds = [kind for kind in type(loader).__mro__ if {"__iter__", "_get_iterator"} & vars(kind).keys()]
    return all(kind is DataLoader or kind.__module__.startswith("torchdata.") for kind in kinds)


def _options(loader: DataLoader) -> dict[str, Any]:
    """How the loader makes batches; in workers only where these are set up, as for files that each one opens."""
    options: dict[str, Any] = {"collate_fn": loader.collate_fn}
    set_up = loader.worker_init_fn
    seeding = getattr(getattr(set_up, "func", None), "__name__", "") == "pl_worker_init_function"
    if loader.num_workers and set_up is not None and not seeding:
        options |= {
            "num_workers": loader.num_workers,
            "worker_init_fn": set_up,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return options


def drawn_rows(loader: RowLoader, limit: int | None, seed: int) -> list[list[int]]:
    """Row numbers of each batch of a loader.

    Args:
        loader: Rows, as `row_loader` gives them.
        limit: Largest number of rows, drawn without replacement and in order; ``None`` takes all.
        seed: Seed of the draw.
    """
    chunks = loader.chunks
    rows = [i for chunk in chunks for i in chunk]
    if limit is None or limit >= len(rows):
        return chunks
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:limit]
    return chunked([rows[i] for i in order.sort().values.tolist()], len(chunks[0]))


def mixed_rows(first: RowLoader, second: RowLoader, seed: int) -> RowLoader:
    """The rows of two loaders in batches of mixed rows, of the size of the second one's.

    Args:
        first: Rows, as `row_loader` gives them.
        second: Further rows of the same kind.
        seed: Seed of their order.

    Raises:
        MisconfigurationException: If they come in batches that can't be taken apart, or are not of the same kind.
    """
    size = max(map(len, second.chunks))
    order = torch.randperm(first.count + second.count, generator=torch.Generator().manual_seed(seed)).tolist()
    chunks = chunked(order, size)
    tables = [loader for loader in (first, second) if isinstance(loader, _Table) and loader.fetch == "rows"]
    if len(tables) == 2:
        asked = [(table, row) for table in tables for chunk in table.chunks for row in chunk]
        return _Table(_Either(), [(table.dataset, table.keys[row]) for table, row in asked], chunks, tables[1].options)
    singles = [list(loader.select([[row] for chunk in loader.chunks for row in chunk])) for loader in (first, second)]
    rows = [*singles[0], *singles[1]]
    mixed = [join([rows[row] for row in chunk]) for chunk in chunks]
    if any(batch is None for batch in mixed):
        raise MisconfigurationException(
            "The rows of two roles are to share batches, but they come in batches that can't be joined. Give both by "
            "map-style datasets whose rows the collate function of the second one takes."
        )
    return _Held(mixed)


class _Either(Dataset):
    """Rows of several datasets, each asked for with its dataset."""

    def __getitem__(self, asked: tuple[Any, Any]) -> Any:
        dataset, key = asked
        return dataset[key]


def on_device(trainer: Trainer, batch: Any) -> Any:
    """A batch on the device of the run, in its precision, through the module's transfer hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    return transferred(trainer.lightning_module, batch, trainer.strategy.root_device)


class RunRows:
    """Batches of the rows of a loader, shared by the replicas of a run.

    Every process makes the same number of forward passes, since they are collective for sharded weights: a replica with
    one batch fewer than another reads its last batch again, and the repetition does not count. Processes of one
    tensor-parallel group read the same batches. A stream that gives each replica its own rows is read whole by each.

    Args:
        trainer: Trainer of the run.
        loader: Rows, as `row_loader` gives them.
        description: Title of the progress bar, and name of the rows in errors.
        limit: Largest number of rows, drawn without replacement; ``None`` takes all. A stream gives its first batches
            with that many rows.
        seed: Seed of the draw.
        shows: Whether to show a progress bar.

    Raises:
        MisconfigurationException: If a stream has no end, or none on one of the processes.
    """

    def __init__(
        self,
        trainer: Trainer,
        loader: RowLoader,
        description: str,
        limit: int | None = None,
        seed: int = 0,
        shows: bool = True,
    ) -> None:
        self.trainer, self.description, self.shows = trainer, description, shows
        if limit is not None:
            loader = loader.first(limit) if loader.streamed else loader.select(drawn_rows(loader, limit, seed))
        self.loader = loader
        self.replica = replica(trainer)
        content, batches = loader.content(), len(loader)
        self.count = loader.count
        """Number of rows on all processes."""
        self._numbers, self._counts = _turns(batches, self.replica.rank, self.replica.total)
        if content is not None and self.replica.total > 1:
            theirs = dict(gather_objects((self.replica.rank, (content, batches, self.count))))
            if len({content for content, *_ in theirs.values()}) > 1:
                longest = max(batches for _, batches, _ in theirs.values())
                if not all(batches for _, batches, _ in theirs.values()):
                    raise MisconfigurationException(
                        f"{description}: one process has no rows, but another has {longest} batches. Give each some."
                    )
                self.count = sum(count for *_, count in theirs.values())
                self._numbers = [min(number, batches - 1) for number in range(longest)]
                self._counts = [number < batches for number in range(longest)]

    @classmethod
    def of_role(cls, trainer: Trainer, role: str, method: str, limit: int | None = None, seed: int = 0) -> RunRows:
        """The rows of one role of the training data.

        Args:
            trainer: Trainer of the run.
            role: ``"forget"`` or ``"retain"``.
            method: Name of the method that reads them, for errors and the progress bar.
            limit: At most so many rows.
            seed: Seed of their draw.

        Raises:
            MisconfigurationException: If there are no such rows, or they can't be told.
        """
        loader = row_loader(trainer.train_dataloader, role)
        if loader is None or not (limit if loader.streamed and limit else loader.count):
            raise MisconfigurationException(
                f"{method} reads the {role} rows before training, but the run has none. Pass "
                "trainer.fit(module, {'forget': ..., 'retain': ...}) with a loader for each, or a "
                "ForgetRetainDataModule."
            )
        return cls(trainer, loader, f"{method}: {role} rows", limit, seed)

    def __len__(self) -> int:
        """Batches that this process reads."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        """Batches on the device, and whether each one counts."""
        batches = self.loader.at(self._numbers)
        shown = progress(batches, self.description, len(self)) if self.shows else batches
        for batch, counts in zip(shown, self._counts, strict=True):
            yield on_device(self.trainer, batch), counts

    def gather(self, values: Iterable[T]) -> list[T]:
        """One value for each batch of the run, in the order of the rows, on every process. A collective call.

        Args:
            values: One for each batch that this process reads.
        """
        mine = [value for value, counts in zip(values, self._counts, strict=True) if counts]
        by_replica = dict(gather_objects((self.replica.rank, mine)))
        longest = max(map(len, by_replica.values()))
        return [
            by_replica[number][turn]
            for turn in range(longest)
            for number in sorted(by_replica)
            if turn < len(by_replica[number])
        ]


def _turns(batches: int, number: int, total: int) -> tuple[list[int], list[bool]]:
    """The batches of one replica, and whether each counts."""
    turns = range(number, -(-batches // total) * total, total)
    return [min(turn, batches - 1) for turn in turns], [turn < batches for turn in turns]
