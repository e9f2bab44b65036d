"""Sampler, loader and data module of forget-retain pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.distributed import Replica, replica
from lightning_unlearn.core.lightning import LightningDataModule, rank_zero_info, resolve
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["ForgetRetainDataModule", "PairLoader", "PairSampler"]

Role = Literal["forget", "retain"]

_WINDOW = 8  # batches whose rows are sorted by length together: enough to save most padding, few enough to stay random


class PairSampler(DistributedSampler):
    """Chooses the rows of each batch as a function of (seed, epoch, batch) alone, without generator state.

    An epoch is one pass over the rows of the driving role. Rows of the other role come from an endless stream of
    reshuffled passes that continues from epoch to epoch, so they are covered evenly. Each replica of the model takes
    its share of a global batch: two replicas with batch size B see the pairs that one sees with 2B. If the rows of the
    driving role do not divide evenly, up to ``replicas - 1`` of them are repeated in an epoch.

    Args:
        sizes: Number of rows of each role.
        batch_sizes: Rows of each role in a batch, per process.
        driver: The role that an epoch passes over once.
        seed: Seed of the shuffles.
        lengths: Length of each row by role; where given, rows of like length share a batch.
        share: The replica that this process belongs to; by default each process is one, also where the loader was made
            before the processes knew of one another.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        driver: str,
        seed: int,
        lengths: Mapping[str, Tensor] | None = None,
        share: Replica | None = None,
    ) -> None:
        # DistributedSampler's constructor is skipped on purpose: only its type matters, it tells Lightning that
        # rows are shared out already.
        self.sizes, self.batch_sizes, self.driver, self.seed = dict(sizes), dict(batch_sizes), driver, seed
        self.lengths, self._share = dict(lengths or {}), share
        self.epoch = 0
        self.resume = (0, 0)
        """The epoch that a checkpoint was taken in, and how many batches of it were served by then."""

    @property
    def share(self) -> Replica:
        """The replica that this process belongs to."""
        return self._share or replica(None)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.sizes[self.driver] / (self.batch_sizes[self.driver] * self.share.total))

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, dict[str, list[int]]]]:
        """The epoch and this process's row numbers by role, for each batch that is left of the epoch."""
        for choice in self._batches()[self.served() :]:
            yield self.epoch, {role: rows[self.share.rank :: self.share.total] for role, rows in choice.items()}

    def served(self) -> int:
        """Batches of the epoch that came before the checkpoint. In any other epoch, there are none."""
        epoch, served = self.resume
        return served if epoch == self.epoch else 0

    def coverage(self, role: str, epochs: int) -> float:
        """Share of the rows of a role that are visited within a number of epochs."""
        if role == self.driver:
            return 1.0 if epochs > 0 else 0.0
        return min(1.0, epochs * len(self) * self.batch_sizes[role] * self.share.total / self.sizes[role])

    def _batches(self) -> list[dict[str, list[int]]]:
        batches: list[dict[str, list[int]]] = [{} for _ in range(len(self))]
        shuffle = self._generator("window", self.epoch)
        orders = {role: self._rows(role) for role in self.sizes}
        for first in range(0, len(batches), _WINDOW):
            window = batches[first : first + _WINDOW]
            places = torch.randperm(len(window), generator=shuffle).tolist()
            for role, order in orders.items():
                size = self.batch_sizes[role] * self.share.total
                rows = order[first * size : (first + len(window)) * size]
                if role in self.lengths:
                    rows = rows[torch.argsort(self.lengths[role][rows], stable=True)]
                for place, chunk in zip(places, rows.split(size), strict=True):
                    window[place][role] = chunk.tolist()
        return batches

    def _rows(self, role: str) -> Tensor:
        n = self.sizes[role]
        if role == self.driver:
            order = self._shuffled(role, self.epoch)
            # Every replica gets equally many rows in every batch.
            return (
                torch.cat([order, order[: -n % self.share.total]])
                if n >= self.share.total
                else order.repeat(self.share.total)
            )
        count = len(self) * self.batch_sizes[role] * self.share.total
        start = self.epoch * count
        passes = range(start // n, (start + count - 1) // n + 1)
        return torch.cat([self._shuffled(role, i) for i in passes])[start % n : start % n + count]

    def _shuffled(self, role: str, number: int) -> Tensor:
        return torch.randperm(self.sizes[role], generator=self._generator(role, number))

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return keyed_generator(self.seed, *purpose.encode(), number)


class _Paired(Dataset):
    """Collates the rows that a `PairSampler` chose."""

    def __init__(
        self, parts: Mapping[str, Any], followers: Mapping[str, Any], collate: Callable[[list[Any]], Any]
    ) -> None:
        self.parts, self.followers, self.collate = dict(parts), dict(followers), collate

    def __getitem__(self, choice: tuple[int, dict[str, list[int]]]) -> dict[str, Any]:
        epoch, rows = choice
        batch = {role: self.collate([self.parts[role][i] for i in chosen]) for role, chosen in rows.items()}
        for role, part in self.followers.items():
            batch[role] = self.collate([part[i, epoch] for i in rows["forget"]])
        return batch


class PairLoader(DataLoader):
    """Yields ``{"forget": ..., "retain": ...}`` and remembers how far into the epoch it is, for an exact resume.

    Args:
        parts: A map-style dataset for each role.
        followers: Datasets read at ``[forget row, epoch]``, such as refusals to the forget questions. One that also
            has a length and is read at ``[i]``, with a stable ``index`` a row, lets a reference be cached.
        sampler: Says which rows meet.
        collate: Makes a batch of a list of rows.
        num_workers: Processes that load data.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        followers: Mapping[str, Any],
        sampler: PairSampler,
        collate: Callable[[list[Any]], Any],
        num_workers: int = 0,
    ) -> None:
        super().__init__(_Paired(parts, followers, collate), batch_size=None, sampler=sampler, num_workers=num_workers)
        self._served = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch, or what is left of the one that a checkpoint was taken in."""
        self._served = self.sampler.served()  # type: ignore[attr-defined]
        batches = super().__iter__()
        for batch in batches:
            self.sampler.resume = (0, 0)  # type: ignore[attr-defined]
            self._served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The current epoch and the batches served in it."""
        return {"epoch": self.sampler.epoch, "served": self._served % len(self)}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in the epoch of the checkpoint where it was taken."""
        self.sampler.resume = (state["epoch"], state["served"])  # type: ignore[attr-defined]

    @staticmethod
    def rewound(state: dict[str, int], served: int) -> dict[str, int]:
        """A state of the same epoch after fewer batches."""
        return {**state, "served": served}

    def rows(self, role: str, batch_sampler: Any) -> DataLoader:
        """The rows of one role in a given order."""
        part: Any = self.part(role)
        return DataLoader(part, batch_sampler=batch_sampler, collate_fn=self.dataset.collate)  # type: ignore[attr-defined]

    def part(self, role: str) -> Any | None:
        """The rows of a part, or all rows of a follower; ``None`` if there are none or their number is unknown."""
        part = (self.dataset.parts | self.dataset.followers).get(role)  # type: ignore[attr-defined]
        return part if hasattr(part, "__len__") else None


class _Indexed(Dataset):
    """Adds each row's number to rows that are dicts and have no ``index`` of their own."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        row = self.rows[i]
        return {**row, "index": i} if isinstance(row, Mapping) and "index" not in row else row


def _takes_dataloader_idx(hook: Callable[..., Any]) -> bool:
    return resolve("utilities.signature_utils.is_param_in_hook_signature")(hook, "dataloader_idx")


class ForgetRetainDataModule(LightningDataModule):
    """Pairs any two map-style datasets for unlearning.

    Validation and test read every named set where the module's hooks take ``dataloader_idx``, and otherwise one set:
    for validation ``"val"``, ``"validation"`` or ``"retain"``, for test ``"test"`` or ``"retain"``, the first of them
    that there is. ``limit_val_batches=0`` switches validation off.

    Args:
        forget: Rows to forget.
        retain: Rows whose behaviour is to stay; ``None`` for objectives without a retain term.
        heldout: Further named sets that are only evaluated.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many as forget rows.
        epoch: The role that one epoch passes over once. The other role is drawn from endless reshuffled passes.
        seed: Seed of shuffling and pairing. The same seed pairs the same rows, resumed or not, on any number of
            processes with the same global batch.
        num_workers: Processes that load data.
        collate_fn: Makes a batch of a list of rows; torch's default where none is given.

    Raises:
        ValueError: If forget or retain is empty, or a number is out of range.
    """

    def __init__(
        self,
        forget: Any = None,
        retain: Any = None,
        heldout: Mapping[str, Any] | None = None,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.retain_batch_size = at_least(
            "retain_batch_size", batch_size if retain_batch_size is None else retain_batch_size, 1
        )
        self.epoch, self.seed, self.num_workers = one_of("epoch", epoch, Role), seed, num_workers
        self.collate_fn = collate_fn or default_collate
        self.sets: dict[str, Any] = {}
        """Every named set of rows: ``forget``, ``retain`` and the held-out ones."""
        self.followers: dict[str, Any] = {}
        if forget is not None:
            self.sets = {
                name: _Indexed(rows)
                for name, rows in {"forget": forget, "retain": retain, **(heldout or {})}.items()
                if rows is not None
            }

    def train_dataloader(self) -> PairLoader:
        """Pairs of forget and retain rows."""
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise TypeError(
                "overfit_batches replaces the sampler that pairs forget and retain rows. Use limit_train_batches to "
                "train on few batches."
            )
        parts: dict[str, Any] = {name: self.sets[name] for name in ("forget", "retain") if name in self.sets}
        for name, rows in parts.items():
            if len(rows) == 0:
                raise ValueError(f"The {name} set is empty. Unlearning needs at least one {name} row.")
        if self.epoch not in parts:
            raise ValueError(f"epoch={self.epoch!r}, but there are only {sorted(parts)} rows. Give {self.epoch} rows.")
        sampler = PairSampler(
            {name: len(rows) for name, rows in parts.items()},
            {"forget": self.batch_size, "retain": self.retain_batch_size},
            driver=self.epoch,
            seed=self.seed,
            lengths={n: rows.lengths for n, rows in parts.items() if hasattr(rows, "lengths")},
            share=replica(self.trainer) if self.trainer is not None else None,
        )
        self._report_coverage(sampler)
        return PairLoader(parts, self.followers, sampler, self.collate_fn, self.num_workers)

    def val_dataloader(self) -> dict[str, DataLoader]:
        """What the module validates on: see `evaluation_sets`."""
        return self.evaluation_sets("validation", ("val", "validation", "retain"))

    def test_dataloader(self) -> dict[str, DataLoader]:
        """What the module is tested on: see `evaluation_sets`."""
        return self.evaluation_sets("test", ("test", "retain"))

    def evaluation_sets(self, stage: Literal["validation", "test"], preferred: Sequence[str]) -> dict[str, DataLoader]:
        """The sets that the hooks of a module can distinguish.

        All named sets if the hooks take ``dataloader_idx``. A module with the usual ``validation_step(batch,
        batch_idx)`` takes one loader, that of the preferred set.

        Args:
            stage: Which hooks.
            preferred: Names of the sets that make the one loader; the first one that there is.
        """
        loaders = self.set_loaders()
        module = self.trainer.lightning_module if self.trainer is not None else None
        hooks = [] if module is None else [f"{stage}_step", f"on_{stage}_batch_start", f"on_{stage}_batch_end"]
        single = [hook for hook in hooks if not _takes_dataloader_idx(getattr(module, hook))]
        if not single or len(loaders) < 2:
            return loaders
        name = next((name for name in preferred if name in loaders), next(iter(loaders)))
        rank_zero_info(
            f"{type(module).__name__}.{single[0]} takes no dataloader_idx, so {stage} reads one set, {name!r}. With "
            f"dataloader_idx=0 among its arguments it gets each of {list(loaders)}."
        )
        return {name: loaders[name]}

    def set_loaders(self) -> dict[str, DataLoader]:
        """A loader of every named set, in order."""
        return {
            name: DataLoader(rows, batch_size=self.batch_size, collate_fn=self.collate_fn, num_workers=self.num_workers)
            for name, rows in self.sets.items()
        }

    def _report_coverage(self, sampler: PairSampler) -> None:
        epochs = (self.trainer.max_epochs or 0) if self.trainer is not None else 0
        for role in sampler.sizes:
            if role != self.epoch and epochs > 0:
                share = sampler.coverage(role, epochs)
                rank_zero_info(f"{epochs} epochs over {self.epoch} visit {share:.0%} of the {role} rows.")
