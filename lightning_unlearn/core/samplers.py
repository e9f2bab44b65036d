"""Distinct rows that the sampler of a DataLoader yields."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_unlearn.core.distributed import gather_objects, world_size
from lightning_unlearn.core.lightning import MisconfigurationException, rank_zero_warn

__all__ = ["SampledRows", "chunked", "detached", "sampled_rows", "without_a_trace"]

_PASSES = 16  # of a sampler that draws other rows each time, until no new ones have come for `_QUIET` passes
_QUIET = 3
_UNSIZED = 100_000  # rows to expect of a dataset that does not tell


class SampledRows(NamedTuple):
    """Rows of a dataset.

    Args:
        keys: What the dataset is asked for, each row once.
        chunks: The places in ``keys`` of the rows of each batch.
        fetch: What a batch is made of: ``"rows"``, each asked for by itself and collated; ``"batch"``, asked for by a
            list; ``"item"``, where the dataset holds batches.
    """

    keys: Sequence[Any]
    chunks: list[list[int]]
    fetch: str
    fixed: bool = False
    """Whether each pass has the same order."""


def sampled_rows(loader: DataLoader, everywhere: bool = True) -> SampledRows:
    """The rows that a loader of a map-style dataset can yield, each once.

    These are all rows for torch's sequential, random and distributed samplers, the indices of a
    ``SubsetRandomSampler``, and the rows of a ``WeightedRandomSampler`` with a weight above 0. Any other sampler is
    run through, twice or more, on a copy and with random numbers of its own. Where its passes differ, the rows are
    those of all passes, and a warning says so. Neither the samplers nor the random state of the run change.

    Args:
        loader: The loader.
        everywhere: Whether all processes ask at once: then the rows are those of all processes together.

    Raises:
        MisconfigurationException: If a sampler has no end, or each of many passes gives rows that none gave before.
    """
    try:
        size = len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a dataset needs none beside a sampler that knows its rows
        size = _UNSIZED
    source, fetch = (loader.sampler, "batch") if loader.batch_sampler is None else (loader.batch_sampler, "rows")
    source = _unwrapped(source)
    if type(source).__iter__ is not BatchSampler.__iter__:
        known = _known(source)
        if known is not None:  # without automatic batching, each thing that a sampler yields makes a batch
            return SampledRows(known[0], chunked(range(len(known[0])), 1), "item")
        return _run_through(source, fetch, everywhere, size)
    sampler = _unwrapped(source.sampler)
    known = _known(sampler)
    if known is None:
        keys, _, _, fixed = _run_through(sampler, "item", everywhere, size)
    else:
        keys, fixed = known
        if everywhere and not isinstance(keys, range):
            keys = [key for batch in _merged([[key] for key in keys]) for key in batch]
    if source.drop_last and fixed:  # where the order changes, each pass leaves others out
        keys = keys[: len(keys) - len(keys) % source.batch_size]
    return SampledRows(keys, chunked(range(len(keys)), source.batch_size), fetch)


def _unwrapped(sampler: Any) -> Any:
    """The user's own sampler, where Lightning has it share its rows among processes."""
    if isinstance(sampler, DistributedSampler) and hasattr(sampler.dataset, "_sampler"):
        return sampler.dataset._sampler
    return sampler


def _known(sampler: Any) -> tuple[Sequence[Any], bool] | None:
    """The rows of torch's own samplers, and whether each pass has them in the same order."""
    iterates: Callable[..., Any] = type(sampler).__iter__
    if iterates in (SequentialSampler.__iter__, RandomSampler.__iter__):
        return range(len(sampler.data_source)), iterates is SequentialSampler.__iter__
    if iterates is SubsetRandomSampler.__iter__:
        return list(dict.fromkeys(map(_plain, sampler.indices))), False
    if iterates is WeightedRandomSampler.__iter__:
        return torch.as_tensor(sampler.weights).nonzero().flatten().tolist(), False
    if iterates is DistributedSampler.__iter__:
        if sampler.shuffle:  # each epoch gives this process another share
            return range(len(sampler.dataset)), False
        if sampler.num_replicas == world_size():
            return range(min(sampler.total_size, len(sampler.dataset))), False
    return None


def _run_through(source: Any, fetch: str, everywhere: bool, rows: int) -> SampledRows:
    """The rows of a sampler, or batch sampler, of someone's own."""
    name = type(source).__name__
    copied, random_state = detached(source), own_random_state(0)
    sets_epoch = callable(getattr(copied, "set_epoch", None))
    seen: set[Any] = set()
    batches: list[list[Any]] = []
    orders: set[str] = set()
    passes = quiet = 0
    differ = False
    while passes < (_QUIET + 1 if sets_epoch else 2) or (differ and quiet < _QUIET):
        if passes == _PASSES:
            raise _unknown_rows(name, f"gives other rows in each pass, and after {passes} passes still new ones")
        if sets_epoch:
            copied.set_epoch(passes)
        with random_state():
            items, ends = _one_pass(copied, rows)
        lists = bool(items) and isinstance(items[0], (list, np.ndarray))
        fetch = "item" if fetch == "batch" and not lists else fetch
        known, given = len(seen), set[Any]()
        for number, item in enumerate(items):
            keys = {_identity(key): key for key in map(_plain, item if lists else [item])}
            new = [key for identity, key in keys.items() if identity not in seen]
            if new and not ends and number > len(items) // 2:
                raise _unknown_rows(name, f"has no end, and after {number} batches still gives new rows")
            batches += [new] if new else []
            seen.update(keys)
            given.update(keys)
        differ |= not ends or (passes > 0 and not known == len(given) == len(seen))
        quiet = 0 if len(seen) > known else quiet + 1
        passes += 1
        orders.add(_digest(items))
        if not ends:
            break
    if differ:
        rank_zero_warn(
            f"{name} gives other rows in each pass. The rows of its role are the {len(seen)} that it gave in {passes} "
            "passes, each once."
        )
    batches = _merged(batches) if everywhere else batches
    places, start = [], 0
    for batch in batches:
        places.append(list(range(start, start + len(batch))))
        start += len(batch)
    return SampledRows([key for batch in batches for key in batch], places, fetch, fixed=len(orders) == 1)


def _one_pass(source: Any, rows: int) -> tuple[list[Any], bool]:
    """What a sampler yields, and whether that has an end."""
    try:
        bound = len(source)
    except (TypeError, NotImplementedError):
        items = list(islice(iter(source), 10 * rows + 1))
        return items, len(items) <= 10 * rows
    return list(islice(iter(source), bound)), True


def _unknown_rows(name: str, reason: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"{name} {reason}, so the rows of its role can't be told. Choose them with torch.utils.data.Subset, a "
        "SubsetRandomSampler or a WeightedRandomSampler."
    )


def _merged(batches: list[list[Any]]) -> list[list[Any]]:
    """The rows of all processes, and their batches: each row in the first batch that has it."""
    mine = batches
    if world_size() == 1:
        return batches
    if len(set(gather_objects(_digest(mine)))) > 1:
        batches = [batch for theirs in gather_objects(mine) for batch in theirs]
    seen: set[Any] = set()
    merged = []
    for batch in batches:
        new = [key for key in batch if _identity(key) not in seen]
        seen.update(map(_identity, new))
        merged += [new] if new else []
    return merged


def _digest(items: list[Any]) -> str:
    return sha256(repr(items).encode()).hexdigest()


def _plain(key: Any) -> Any:
    """A number out of a tensor or an array, which would not equal another one with the same value."""
    return key.item() if isinstance(key, (torch.Tensor, np.generic)) and key.ndim == 0 else key


def _identity(key: Any) -> Any:
    try:
        hash(key)
    except TypeError:
        return repr(key)
    return key


def chunked(rows: Sequence[int], size: int) -> list[list[int]]:
    """Rows in batches of a size."""
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


# ---- reading without a trace -----------------------------------------------------------------------------------------


def detached(source: Any) -> Any:
    """A copy of a sampler, dataset or loader that can be run through without a change to the original.

    Its generators, lists, samplers and the dataset of a stream are copied, its rows are not.

    Raises:
        TypeError: If it can't be copied, as an iterator can't.
    """
    copied = copy.copy(source)
    state = getattr(copied, "__dict__", None)
    for name, value in dict(state or {}).items():
        if isinstance(value, torch.Generator):
            generator = torch.Generator(value.device)
            generator.set_state(value.get_state())
            value = generator
        elif isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
            value = copy.deepcopy(value)
        elif isinstance(value, (list, set)):
            value = copy.copy(value)
        elif isinstance(value, (Sampler, DataLoader, IterableDataset)):
            value = detached(value)
        copied.__dict__[name] = value  # DataLoader refuses to have some of them set
    if isinstance(copied, DataLoader):
        copied.__dict__["_iterator"] = None  # or workers that persist would be those of the training run
    return copied


def own_random_state(seed: int) -> Callable[[], Any]:
    """Random numbers of torch, NumPy and Python that are not those of the run.

    Args:
        seed: Where they start.

    Returns:
        A context; entering it again continues where it was left.
    """
    state: list[Any] = []

    @contextmanager
    def context() -> Iterator[None]:
        outside = _random_state()
        if state:
            _set_random_state(state[0])
        else:
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        try:
            yield
        finally:
            state[:] = [_random_state()]
            _set_random_state(outside)

    return context


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


def without_a_trace(batches: Iterable[Any], seed: int = 0) -> Iterator[Any]:
    """Each batch of a loader, read with random numbers of its own."""
    random_state = own_random_state(seed)
    with random_state():
        iterator = iter(batches)
    while True:
        with random_state():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch
