"""Training sets of users' data modules, split into rows to forget and rows to retain."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, default_collate

from lightning_unlearn.classification.data.split import targets_of
from lightning_unlearn.core.batches import as_mapping, row_fingerprint
from lightning_unlearn.core.lightning import classes, isolate_rng, overrides
from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role
from lightning_unlearn.forget.chosen_rows import parse_ranges
from lightning_unlearn.forget.user_module import built, import_class

__all__ = ["DataModuleSplit", "UserData", "batch_size_of", "data_arguments"]

_KIND = "LightningDataModule"
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_SCALARS = (bool, int, float, str)
_LABELS = ("labels", "label", "target", "targets", "y")
_SAMPLE = 32  # rows that a training set is known by


class UserData:
    """A user's data module, set up with random numbers of a seed, so that it splits its rows the same way each time.

    Args:
        path: Import path of the class, ``package.module:Class`` or ``file.py:Class``.
        arguments: Arguments of its constructor. A dict with ``class_path`` and ``init_args`` stands for an object.
        seed: Seed of whatever it draws.

    Raises:
        ValueError: If there is no such class, or it does not take the arguments.
    """

    def __init__(self, path: str, arguments: dict[str, Any] | None = None, seed: int = 0) -> None:
        self.kind = import_class(path, classes(_KIND), _KIND)
        self.seed, self._prepared = seed, False
        self._ready: set[str] = set()
        with self.seeded():
            try:
                # As in open_module: its hyperparameters are not those of the configuration that names it.
                self.module = Context().run(self.kind, **built(arguments or {}))
            except TypeError as error:
                known = [name for name in inspect.signature(self.kind.__init__).parameters if name != "self"]
                raise ValueError(
                    f"{self.kind.__name__} can't be made: {error}. Its arguments are {known}: give them as "
                    "--data.<name> <value>."
                ) from error

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Run with random numbers of the seed, and leave those of the run as they were."""
        with isolate_rng():
            torch.manual_seed(self.seed)
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
            yield

    def prepare(self) -> None:
        """Download, once."""
        if not self._prepared:
            self.module.prepare_data()
            self._prepared = True

    def set_up(self, stage: str) -> None:
        """Set up a stage, once."""
        if stage not in self._ready:
            self._ready.add(stage)
            with self.seeded():
                self.module.setup(stage)

    def train_loader(self) -> DataLoader:
        """The loader of the training set.

        Raises:
            ValueError: If there is none, or its rows can't be told apart.
        """
        self.set_up("fit")
        with self.seeded():
            loader = self.module.train_dataloader()
        name = self.kind.__name__
        if not isinstance(loader, DataLoader):
            raise ValueError(
                f"{name}.train_dataloader gives a {type(loader).__name__}, but row numbers are of one torch "
                "DataLoader. Make a data module that gives the loader of the rows in question."
            )
        if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
            raise ValueError(
                f"{name} trains on a stream, {type(loader.dataset).__name__}, whose rows have no numbers. Give a "
                "map-style dataset, with __getitem__ and __len__."
            )
        if loader.batch_size is None and loader.batch_sampler is None:
            raise ValueError(
                f"The dataset of {name} gives whole batches (batch_size=None), so single rows can't be told apart. "
                "Give one that gives rows, and a batch size to the loader."
            )
        return loader

    def held_out(self) -> tuple[str, DataLoader] | None:
        """The test loader, or else the validation loader, with its name: rows that the model never saw."""
        for name, method, stage in (("test", "test_dataloader", "test"), ("validation", "val_dataloader", "validate")):
            if (loader := self.loader(method, stage)) is not None:
                return name, loader
        return None

    def loader(self, method: str, stage: str) -> DataLoader | None:
        """The first map-style loader that a method of the data module gives."""
        if not overrides(self.module, method, _KIND):
            return None
        self.set_up(stage)
        with self.seeded():
            given = getattr(self.module, method)()
        if isinstance(given, dict):
            given = list(given.values())
        if isinstance(given, (list, tuple)):
            given = given[0] if given else None
        readable = isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset)
        return given if readable and len(given.dataset) else None

    def labels(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> Tensor:
        """Labels of a dataset: those that it tells, or else those in its rows, which are all read.

        Raises:
            ValueError: If rows have no label that is an integer, or it can't be told from other integers.
        """
        try:
            return targets_of(dataset)
        except TypeError:
            with self.seeded():
                found = [_integers(collate([dataset[i]])) for i in range(len(dataset))]
        names = sorted(set.intersection(*map(set, found))) if found else []
        # A whole number that differs in each row is the number of the row.
        names = [name for name in names if len({row[name] for row in found}) < len(found)] or names
        if len(names) != 1:
            have = f"have several whole numbers ({', '.join(names)})" if names else "have no class as a whole number"
            raise ValueError(
                f"The rows of {type(dataset).__name__} {have}, so their classes are not known. Give it an attribute "
                "`targets` with one integer a row, or choose rows by their numbers: --rows."
            )
        return torch.tensor([row[names[0]] for row in found])

    def fingerprint(self, seed: int | None = None) -> str:
        """A hash of the training set, by its length and some of its rows, read with random numbers of one seed."""
        loader = self.train_loader()
        dataset: Any = loader.dataset
        digest = hashlib.sha256(str(len(dataset)).encode())
        places = torch.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset))).long().tolist()
        with isolate_rng():
            for place in places:
                torch.manual_seed(seed or 0)
                row = loader.collate_fn([dataset[place]])
                digest.update(str(row_fingerprint(row).tolist()).encode())
        digest.update(str(_indices(dataset)).encode())
        return digest.hexdigest()


def _integers(row: Any) -> dict[str, int]:
    """Whole numbers of a row, in a batch of its own, that may be its class, by their names or places."""
    named = as_mapping(row)
    parts = ((name, named.get(name) if named is not None else getattr(row, name, None)) for name in _LABELS)
    found = dict([(name, part) for name, part in parts if part is not None][:1])
    if not found and isinstance(row, (list, tuple)):
        found = {f"part {place}": part for place, part in enumerate(row) if place}
    return {
        name: int(part)
        for name, part in found.items()
        if isinstance(part, Tensor) and not part.is_floating_point() and part.numel() == 1
    }


def _indices(dataset: Any) -> list[Any]:
    """Which rows of other datasets a dataset is made of."""
    if isinstance(dataset, Subset):
        return [list(map(int, dataset.indices)), _indices(dataset.dataset)]
    if isinstance(dataset, ConcatDataset):
        return list(map(_indices, dataset.datasets))
    return []


class DataModuleSplit(ForgetRetainDataModule):
    """The training set of a user's data module, split into rows to forget and the others, which are retained.

    Batches are made by the user's collate function, and go through the data module's transfer hooks. Validation and
    test read what the user's data module gives. Attributes that a module asks for are those of the user's data module.

    Args:
        data: Import path of the data module's class, ``package.module:Class`` or ``file.py:Class``.
        forget: Row numbers of the training set, such as ``0-99,205``.
        arguments: Arguments of its constructor. A dict with ``class_path`` and ``init_args`` stands for an object.
        fingerprint: Hash of the training set, which is refused if it has another.
        batch_size: Rows to forget, and as many to retain, in a batch, per process; by default the user's.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling and pairing, and of whatever the data module draws when it is set up.

    Raises:
        ValueError: If there is no such class, or its training set can't be split, or is another one than before.
    """

    def __init__(
        self,
        data: str,
        forget: str,
        arguments: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
    ) -> None:
        self.user = UserData(data, arguments, seed)
        super().__init__(batch_size=batch_size or 1, epoch=epoch, seed=seed)
        self.forget_rows, self.fingerprint, self._batch_size = parse_ranges(forget), fingerprint, batch_size
        for hook in _HOOKS:
            if overrides(self.user.module, hook, _KIND):
                setattr(self, hook, getattr(self.user.module, hook))

    def prepare_data(self) -> None:
        """Let the user's data module prepare its data."""
        self.user.prepare()

    def setup(self, stage: str) -> None:
        """Set up the user's data module, and split its training set."""
        self.user.module.trainer = self.trainer
        if not self.sets:
            self._split()
        if stage != "fit":
            self.user.set_up(stage)

    def _split(self) -> None:
        loader = self.user.train_loader()
        if self.fingerprint is not None and (found := self.user.fingerprint()) != self.fingerprint:
            raise ValueError(
                f"The training set of {self.user.kind.__name__} is not the one that the request was made for: its hash "
                f"is {found}, and not {self.fingerprint}. Row numbers would be those of other rows. Give the same data "
                "and arguments, or make the request anew."
            )
        dataset: Any = loader.dataset
        chosen = set(self.forget_rows)
        if outside := [row for row in chosen if row >= len(dataset)]:
            raise ValueError(f"The training set has {len(dataset)} rows, but {min(outside)} is to be forgotten.")
        rest = [row for row in range(len(dataset)) if row not in chosen]
        self.sets = {"forget": Subset(dataset, sorted(chosen)), "retain": Subset(dataset, rest)}
        self.collate_fn, self.num_workers = loader.collate_fn or default_collate, loader.num_workers
        size = self._batch_size or batch_size_of(loader)
        self.batch_size, self.retain_batch_size = min(size, len(chosen)), min(size, len(rest))

    def val_dataloader(self) -> Any:
        """The user's."""
        self.user.set_up("validate")
        return self.user.module.val_dataloader()

    def test_dataloader(self) -> Any:
        """The user's."""
        self.user.set_up("test")
        return self.user.module.test_dataloader()

    def __getattr__(self, name: str) -> Any:
        """An attribute of the user's data module, which the module may ask its trainer for."""
        if name.startswith("__") or name in ("user", "trainer", "_trainer"):
            raise AttributeError(name)
        return getattr(self.user.module, name)


def data_arguments(path: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Plain arguments of a data module that a checkpoint has, where its constructor calls ``save_hyperparameters``.

    Args:
        path: Import path of the data module's class.
        checkpoint: What the checkpoint holds.
    """
    kind = import_class(path, classes(_KIND), _KIND)
    saved = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_KEY) or {}
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in saved.items() if name in known and _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(part) for key, part in value.items())
    return all(map(_plain, value)) if isinstance(value, list) else value is None or type(value) in _SCALARS


def batch_size_of(loader: DataLoader) -> int:
    """Rows in a batch of a loader."""
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32
