"""The rows of a run: each once and in order, shared by the replicas of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from lightning_unlearn.core.distributed import gather_objects, rank, replica
from lightning_unlearn.core.lightning import COMBINED_LOADERS, MisconfigurationException, Trainer
from lightning_unlearn.core.pairing import PairLoader
from lightning_unlearn.core.transfer import transferred

__all__ = ["RunRows", "drawn_rows", "on_device", "row_loader", "written_date"]

T = TypeVar("T")


def row_loader(train_dataloader: Any, role: str, chunks: list[list[int]] | None = None) -> DataLoader | None:
    """A loader of the rows of one role, each once and in order, from whatever the run trains on.

    Args:
        train_dataloader: A `PairLoader`, a dict of loaders or a ``CombinedLoader`` of one.
        role: ``"forget"``, ``"retain"``, or a role that follows the forget rows in a `PairLoader`, such as ``"idk"``.
        chunks: Row numbers of each batch; by default all rows in batches of the loader's own size.

    Returns:
        The loader, or ``None`` where rows can't be addressed (iterable datasets, other kinds of loader).
    """
    if isinstance(train_dataloader, COMBINED_LOADERS):
        train_dataloader = train_dataloader.iterables
    if isinstance(train_dataloader, PairLoader):
        part = train_dataloader.part(role)
        if part is None:
            return None
        sizes = train_dataloader.sampler.batch_sizes  # type: ignore[attr-defined]
        return train_dataloader.rows(role, chunks or _chunks(range(len(part)), sizes.get(role, sizes["forget"])))
    loader = train_dataloader.get(role) if isinstance(train_dataloader, dict) else None
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    size = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1
    return DataLoader(
        loader.dataset,
        batch_sampler=chunks or _chunks(range(len(loader.dataset)), size),  # type: ignore[arg-type]
        collate_fn=loader.collate_fn,
    )


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


def drawn_rows(loader: DataLoader, limit: int | None, seed: int) -> list[list[int]]:
    """Row numbers of each batch of a loader.

    Args:
        loader: Rows of a map-style dataset, as `row_loader` gives them.
        limit: At most so many rows, drawn without replacement and in order; ``None`` takes all.
        seed: Seed of the draw.
    """
    chunks = [list(chunk) for chunk in loader.batch_sampler or []]
    rows = [i for chunk in chunks for i in chunk]
    if limit is None or limit >= len(rows):
        return chunks
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:limit]
    return _chunks([rows[i] for i in order.sort().values.tolist()], len(chunks[0]))


def on_device(trainer: Trainer, batch: Any) -> Any:
    """A batch on the device of the run, in its precision, through the module's transfer hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    return transferred(trainer.lightning_module, batch, trainer.strategy.root_device)


class RunRows:
    """Batches of the rows of a loader, shared by the replicas of a run.

    Every process makes the same number of forward passes, since those of sharded weights are collective: where a
    replica has a batch less than another, it reads the last one again, and that does not count. Processes of one
    tensor-parallel group read the same batches.

    Args:
        trainer: Trainer of the run.
        loader: Rows of a map-style dataset, as `row_loader` gives them.
        description: Title of the progress bar.
        limit: At most so many rows, drawn without replacement; ``None`` takes all.
        seed: Seed of the draw.
    """

    def __init__(
        self, trainer: Trainer, loader: DataLoader, description: str, limit: int | None = None, seed: int = 0
    ) -> None:
        self.trainer, self.loader, self.description = trainer, loader, description
        chunks = drawn_rows(loader, limit, seed)
        self.count = sum(map(len, chunks))
        """Number of rows on all processes."""
        self.replica = replica(trainer)
        turns = range(self.replica.rank, -(-len(chunks) // self.replica.total) * self.replica.total, self.replica.total)
        self._counts = [turn < len(chunks) for turn in turns]
        self._chunks = [chunks[min(turn, len(chunks) - 1)] for turn in turns]

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
            MisconfigurationException: If there are no such rows, or they can't be read one by one.
        """
        loader = row_loader(trainer.train_dataloader, role)
        if loader is None or not len(loader.dataset):  # type: ignore[arg-type]
            raise MisconfigurationException(
                f"{method} reads the {role} rows one by one, but the run has none, or they are of an iterable dataset. "
                "Pass trainer.fit(module, {'forget': ..., 'retain': ...}) with loaders of map-style datasets, or a "
                "ForgetRetainDataModule."
            )
        return cls(trainer, loader, f"{method}: {role} rows", limit, seed)

    def __len__(self) -> int:
        """Batches that this process reads."""
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        """Batches on the device, and whether each one counts."""
        loader = DataLoader(self.loader.dataset, batch_sampler=self._chunks, collate_fn=self.loader.collate_fn)
        progress = tqdm(loader, desc=self.description, disable=rank() != 0, leave=False)
        for batch, counts in zip(progress, self._counts, strict=True):
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


def _chunks(rows: Any, size: int) -> list[list[int]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]
