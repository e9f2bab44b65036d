"""A role is what its loader yields: the rows that samplers choose, and streams, each once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_unlearn import SSD, WAGLE, GradDiff, InfluenceUnlearning, UnlearnMonitor, classifier_nll
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.rows import row_loader
from tests.helpers import Recorder, same, trainer
from tests.user_module import LitNet, pairs, seeded

NUMBERS = torch.arange(20)
CHOSEN = [3, 17, 4, 11, 8, 0, 15]


class Cells(Dataset):
    """A table as scvi-tools reads it: many rows are asked for at once."""

    def __len__(self) -> int:
        return len(NUMBERS)

    def __getitem__(self, rows: Any) -> Tensor:
        return NUMBERS[rows]


class Own(Sampler):
    """A permutation of some rows, of its own making."""

    def __init__(self, source: str = "torch", sized: bool = True) -> None:
        self.order, self.source, self.sized = list(CHOSEN), source, sized
        self.generator = torch.Generator().manual_seed(1)

    def __iter__(self) -> Iterator[int]:
        if self.source == "python":
            random.shuffle(self.order)
        if self.source == "numpy":
            return iter(np.random.permutation(self.order))
        if self.source == "generator":
            return (self.order[i] for i in torch.randperm(len(self.order), generator=self.generator))
        return (self.order[i] for i in torch.randperm(len(self.order)))

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError
        return len(self.order)


class Buckets(Sampler):
    """Batches of its own making, of different sizes."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = [CHOSEN[:2], CHOSEN[2:5], CHOSEN[5:]]
        random.shuffle(batches)
        return iter(batches)

    def __len__(self) -> int:
        return 3


class Balanced(Sampler):
    """As many draws of each half as there are rows, with replacement."""

    def __iter__(self) -> Iterator[int]:
        return iter([*np.random.choice(CHOSEN, 20), *CHOSEN[:1]])

    def __len__(self) -> int:
        return 21


class ByEpoch(Sampler):
    """Easy rows first: other ones in each epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(CHOSEN[: 3 + 2 * self.epoch])

    def __len__(self) -> int:
        return len(CHOSEN[: 3 + 2 * self.epoch])


class Finite(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(NUMBERS[CHOSEN])


class Shuffled(IterableDataset):
    """Its own order in each pass, as a buffer makes it."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(CHOSEN), generator=self.generator).tolist()
        return (NUMBERS[CHOSEN[i]] for i in order)


class Home:
    """A loader that is no DataLoader; starts anew whenever it is iterated over."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Home:
        self.at = 0
        return self

    def __next__(self) -> Tensor:
        if self.at >= len(CHOSEN):
            raise StopIteration
        self.at += 2
        return NUMBERS[CHOSEN[self.at - 2 : self.at]]


class Moved(DataLoader):
    """What people write to move batches to the device."""

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        yield from super().__iter__()


def opened(_: int) -> None:
    """Opens what a worker reads."""
    torch.utils.data.get_worker_info().dataset.opened = True  # type: ignore[union-attr]


class Files(Dataset):
    opened = False

    def __len__(self) -> int:
        return len(CHOSEN)

    def __getitem__(self, i: int) -> Tensor:
        assert self.opened
        return NUMBERS[CHOSEN[i]]


LOADERS = {
    "Subset": lambda: DataLoader(Subset(NUMBERS, CHOSEN), 3),  # type: ignore[arg-type]
    "SubsetRandomSampler": lambda: DataLoader(NUMBERS, 3, sampler=SubsetRandomSampler(CHOSEN)),  # type: ignore[arg-type]
    "tensor of rows": lambda: DataLoader(NUMBERS, 3, sampler=SubsetRandomSampler(torch.tensor(CHOSEN))),  # type: ignore[arg-type]
    "WeightedRandomSampler": lambda: DataLoader(
        NUMBERS,  # type: ignore[arg-type]
        3,
        sampler=WeightedRandomSampler([float(i in CHOSEN) * 0.01 for i in range(20)], 5),
    ),
    "list": lambda: DataLoader(NUMBERS, 3, sampler=CHOSEN),  # type: ignore[arg-type]
    **{
        f"own, {k}": lambda k=k: DataLoader(NUMBERS, 3, sampler=Own(k))
        for k in ("torch", "python", "numpy", "generator")
    },
    "own, without a length": lambda: DataLoader(NUMBERS, 3, sampler=Own(sized=False)),  # type: ignore[arg-type]
    "in turns": lambda: DataLoader(NUMBERS, 3, sampler=DistributedSampler(CHOSEN, 1, 0)),  # type: ignore[arg-type]
    "batch sampler": lambda: DataLoader(NUMBERS, batch_sampler=Buckets()),  # type: ignore[arg-type]
    "batch_size=None": lambda: DataLoader(
        Cells(), batch_size=None, sampler=BatchSampler(SubsetRandomSampler(CHOSEN), 3, False)
    ),
    "batch_size=None, own": lambda: DataLoader(Cells(), batch_size=None, sampler=Buckets()),
    "batch_size=None, single": lambda: DataLoader(Cells(), batch_size=None, sampler=SubsetRandomSampler(CHOSEN)),
    "by epoch": lambda: DataLoader(NUMBERS, 3, sampler=ByEpoch()),  # type: ignore[arg-type]
    "balanced": lambda: DataLoader(NUMBERS, 3, sampler=Balanced()),  # type: ignore[arg-type]
    "stream": lambda: DataLoader(Finite(), 3),
    "shuffled stream": lambda: DataLoader(Shuffled(), 3),
    "no DataLoader": Home,
    "own iteration": lambda: Moved(Subset(NUMBERS, CHOSEN), 3),  # type: ignore[arg-type]
    "own iteration, shuffled": lambda: Moved(Subset(NUMBERS, CHOSEN), 3, shuffle=True),  # type: ignore[arg-type]
    "workers": lambda: DataLoader(Files(), 3, num_workers=1, worker_init_fn=opened),
}
# DistributedSampler over a list gives places in it.
PLACES = {"in turns": list(range(7))}


def flat(batches: Any) -> list[int]:
    return torch.cat([batch.reshape(-1) for batch in batches]).tolist()


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore:.*gives other rows in each pass")
def test_each_row_once_and_no_other(name: str) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    loader = LOADERS[name]()
    rows = row_loader({"forget": loader, "retain": None}, "forget")
    assert rows is not None
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    wanted = sorted(PLACES.get(name, CHOSEN))
    assert sorted(flat(rows)) == wanted
    assert rows.count == len(wanted)
    assert sorted(flat(rows.select(rows.chunks[:-1]))) == sorted(flat(list(rows.at(range(len(rows) - 1)))))
    assert len(flat(rows.first(4))) < len(wanted)
    # torch's loader draws a seed in each pass, and the rows of a plain one are read by such a loader.
    assert torch.equal(state[0], torch.get_rng_state()) == (name not in ("Subset", "in turns", "workers"))
    assert (state[1], state[2]) == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


@pytest.mark.parametrize("name", [name for name in LOADERS if name not in ("workers", "shuffled stream")])
@pytest.mark.filterwarnings("ignore:.*gives other rows in each pass")
def test_reading_leaves_the_loader_where_it_was(name: str) -> None:
    def passes(read: bool) -> list[list[int]]:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        loader = LOADERS[name]()
        started = iter(loader)  # as Lightning does before callbacks read rows
        if read:
            flat(row_loader({"forget": loader}, "forget"))
        return [flat(started), flat(loader)]

    assert passes(True) == passes(False)


def test_a_row_that_comes_twice_is_read_once() -> None:
    doubled = DataLoader(NUMBERS, 3, sampler=[*CHOSEN, *CHOSEN])  # type: ignore[arg-type]
    assert sorted(flat(row_loader({"forget": doubled}, "forget"))) == sorted(CHOSEN)


def test_drop_last_leaves_out_what_no_pass_gives() -> None:
    def read(sampler: Any) -> int:
        return row_loader({"forget": DataLoader(NUMBERS, 6, sampler=sampler, drop_last=True)}, "forget").count  # type: ignore[arg-type, union-attr]

    assert [read(SequentialSampler(NUMBERS)), read(range(20)), read(RandomSampler(NUMBERS))] == [18, 18, 20]  # type: ignore[arg-type]


class Draws(Sampler):
    """A few rows of many, others in each pass."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(1000, generator=self.generator)[:5].tolist())

    def __len__(self) -> int:
        return 5


class Counting(IterableDataset):
    """Has no end."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(250_000)


class Once(IterableDataset):
    def __init__(self) -> None:
        self.rows = iter(NUMBERS)

    def __iter__(self) -> Iterator[Tensor]:
        return self.rows


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: DataLoader(range(1000), 5, sampler=Draws()), "Draws gives other rows in each pass"),  # type: ignore[arg-type]
        (lambda: DataLoader(Counting(), None), "have no end"),
        (lambda: DataLoader(Once(), 4), "gave other rows than the first time"),
        (lambda: (batch for batch in [NUMBERS]), "a generator, which can be read only once"),
    ],
)
def test_rows_that_cannot_be_told_are_refused(loader: Any, message: str) -> None:
    def read() -> None:
        rows = row_loader({"forget": loader()}, "forget")
        assert rows is not None
        assert rows.count
        flat(rows)

    with pytest.raises(MisconfigurationException, match=message):
        read()


def test_a_loader_of_pairs_is_read_by_role() -> None:
    both = [{"forget": NUMBERS[i], "retain": NUMBERS[i + 10]} for i in range(10)]
    loader = DataLoader(both, 4, shuffle=True)  # type: ignore[arg-type, var-annotated]
    assert sorted(flat(row_loader(loader, "retain"))) == list(range(10, 20))
    assert row_loader(loader, "idk") is None


# ---- what reads rows -------------------------------------------------------------------------------------------------


class Cut(Dataset):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any) -> Any:
        return self.data[rows]


class Passing(IterableDataset):
    def __init__(self, data: Dataset, rows: list[int]) -> None:
        self.data, self.rows = data, rows

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in self.rows)


def ways(rows: list[int]) -> dict[str, Any]:
    data: Any = pairs(32, seed=1).dataset
    return {
        "Subset": DataLoader(Subset(data, rows), 4),
        "SubsetRandomSampler": DataLoader(data, 4, sampler=SubsetRandomSampler(rows)),
        "batch_size=None": DataLoader(
            Cut(data), batch_size=None, sampler=BatchSampler(SubsetRandomSampler(rows), 4, False)
        ),
        "stream": DataLoader(Passing(data, rows), 4),
    }


FORGET, RETAIN = list(range(0, 32, 3)), [i for i in range(32) if i % 3]


def edited(way: str, method: Any) -> LitNet:
    module = seeded()
    trainer(method).fit(module, {"forget": ways(FORGET)[way], "retain": ways(RETAIN)[way]})
    return module


@pytest.mark.parametrize("way", ["SubsetRandomSampler", "batch_size=None", "stream"])
def test_edits_masks_and_monitors_read_the_rows_of_the_role(way: str) -> None:
    edits = (lambda: SSD(alpha=1.0), lambda: InfluenceUnlearning(damping=1.0, samples=8, score=classifier_nll))
    for make in edits:
        assert same(edited(way, make()), edited("Subset", make()))
    found = []
    for name in ("Subset", way):
        mask, monitor = (
            WAGLE(density=0.5, retain_rows="all", score=classifier_nll),
            UnlearnMonitor(score=classifier_nll, limit=1000),
        )
        run = trainer(GradDiff(score=classifier_nll), mask, monitor)
        run.fit(seeded(lr=0.0), {"forget": ways(FORGET)[name], "retain": ways(RETAIN)[name]})
        found.append((monitor.history[-1].metrics, mask.masks))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert all(torch.equal(found[0][1][name], mask) for name, mask in found[1][1].items())


def test_what_trains_does_not_depend_on_what_is_read() -> None:
    def trained(*callbacks: Any) -> Counter[float]:
        torch.manual_seed(0)
        seen = Recorder(on_train_batch_start=lambda _, __, batch, *___: batch["forget"][0][:, 0].tolist())
        loaders = {"forget": ways(FORGET)["batch_size=None"], "retain": ways(RETAIN)["batch_size=None"]}
        trainer(GradDiff(score=classifier_nll), *callbacks, seen).fit(seeded(), loaders)
        return seen.values  # type: ignore[return-value]

    assert trained(WAGLE(density=0.5, score=classifier_nll), UnlearnMonitor(score=classifier_nll)) == trained()
