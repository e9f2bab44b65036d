"""The rows of a run: each once and in order, shared by the replicas of the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_unlearn import ForgetRetainDataModule, SimNPO, UnlearnMonitor, classifier_nll
from lightning_unlearn.core import rows
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.rows import RowLoader, RunRows, row_loader
from tests.helpers import trainer
from tests.user_module import LitNet, indexed, pairs

# ---- a loader of the rows of a role ----------------------------------------------------------------------------------


def inputs(loader: RowLoader | None) -> Tensor:
    assert loader is not None
    return torch.cat([batch["input"] if isinstance(batch, dict) else batch[0] for batch in loader])


@pytest.mark.parametrize("role", ["forget", "retain"])
def test_row_loader_reads_each_row_once_and_in_order(role: str) -> None:
    rows = {"forget": indexed(13, 1), "retain": indexed(7, 2)}
    expected = torch.stack([row["input"] for row in rows[role]])
    shuffled = {name: DataLoader(part, batch_size=3, shuffle=True) for name, part in rows.items()}  # type: ignore[arg-type, var-annotated]
    pair_loader = ForgetRetainDataModule(**rows).train_dataloader()
    for source in (pair_loader, CombinedLoader(pair_loader), shuffled, CombinedLoader(shuffled, "max_size_cycle")):
        torch.manual_seed(5)
        assert torch.equal(inputs(row_loader(source, role)), expected)


def test_row_loader_keeps_the_batch_size_and_takes_chunks() -> None:
    loaders = {"forget": pairs(10, seed=1, batch_size=4)}
    assert [len(x) for x, _ in row_loader(loaders, "forget")] == [4, 4, 2]  # type: ignore[union-attr]
    whole = inputs(row_loader(loaders, "forget"))
    assert torch.equal(inputs(row_loader(loaders, "forget", chunks=[[9, 0], [3]])), whole[[9, 0, 3]])
    batched = ForgetRetainDataModule(indexed(13, 1), indexed(7, 2), batch_size=5).train_dataloader()
    assert [len(b["index"]) for b in row_loader(batched, "forget")] == [5, 5, 3]  # type: ignore[union-attr]
    assert [b["index"].tolist() for b in row_loader(batched, "retain", [[6, 2]])] == [[6, 2]]  # type: ignore[union-attr]


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(pairs(8, seed=1).dataset)  # type: ignore[call-overload]


def test_a_role_that_is_not_there_has_no_row_loader() -> None:
    assert row_loader({"forget": pairs(4, 1)}, "retain") is None
    assert row_loader(pairs(4, 1), "forget") is None
    assert row_loader({"forget": [1, 2, 3]}, "forget") is None
    assert row_loader(ForgetRetainDataModule(indexed(4, 1)).train_dataloader(), "retain") is None


def test_an_iterable_dataset_can_be_unlearned() -> None:
    module, monitor = LitNet(), UnlearnMonitor(score=classifier_nll)
    loaders = {"forget": DataLoader(Stream(), batch_size=4), "retain": pairs(8, seed=2)}
    fit = trainer(SimNPO(score=classifier_nll), monitor)
    fit.fit(module, loaders)
    assert fit.global_step == 2
    assert set(monitor.history[-1].metrics) == {"forget_nll", "retain_nll"}


# ---- the rows of a run, shared by replicas ---------------------------------------------------------------------------


def processes(total: int, count: int = 10, copies: int = 1, **options: Any) -> list[RunRows]:
    """The reader of each process, where ``copies`` processes hold one replica; batches have two rows."""
    data = ForgetRetainDataModule(indexed(count, 1), batch_size=2)
    loader = row_loader(data.train_dataloader(), "forget")
    assert loader is not None
    plain = SimpleNamespace(convert_input=lambda batch: batch)
    strategies = [
        SimpleNamespace(
            distributed_sampler_kwargs={"rank": rank, "num_replicas": total}, root_device=torch.device("cpu")
        )
        for rank in range(total)
        for _ in range(copies)
    ]
    runs: list[Any] = [
        SimpleNamespace(strategy=strategy, precision_plugin=plain, lightning_module=torch.nn.Identity())
        for strategy in strategies
    ]
    return [RunRows(run, loader, "rows", **options) for run in runs]


def read(reader: RunRows) -> list[tuple[list[int], bool]]:
    return [(batch["index"].tolist(), counts) for batch, counts in reader]


def gathered(readers: list[RunRows], monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """What each process has after the collective call."""
    sent: list[Any] = []
    values = [[indices for indices, _ in read(reader)] for reader in readers]
    with monkeypatch.context() as patch:
        patch.setattr(rows, "gather_objects", lambda value: sent.append(value) or [value])
        for reader, own in zip(readers, values, strict=True):
            reader.gather(own)
        patch.setattr(rows, "gather_objects", lambda value: sent)
        return [reader.gather(own) for reader, own in zip(readers, values, strict=True)]


IN_ORDER = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_one_process_reads_each_row_once_and_in_order() -> None:
    (reader,) = processes(1)
    assert read(reader) == [(chunk, True) for chunk in IN_ORDER]
    assert reader.count == 10
    assert len(reader) == 5
    assert reader.gather(range(5)) == [0, 1, 2, 3, 4]


def test_replicas_take_turns_and_read_equally_often() -> None:
    first, second, third = processes(3)
    assert read(first) == [([0, 1], True), ([6, 7], True)]
    assert read(second) == [([2, 3], True), ([8, 9], True)]
    assert read(third) == [([4, 5], True), ([8, 9], False)]  # a batch less, so that the last one does not count
    assert {reader.count for reader in (first, second, third)} == {10}
    assert {len(reader) for reader in (first, second, third)} == {2}


@pytest.mark.parametrize("copies", [1, 2], ids=["whole", "tensor-parallel"])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_every_process_gathers_each_batch_once_and_in_order(
    total: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gathered(processes(total, copies=copies), monkeypatch) == [IN_ORDER] * total * copies


def test_processes_of_one_replica_read_the_same_rows() -> None:
    a, b, c, d = processes(2, copies=2)
    assert read(a) == read(b) == [([0, 1], True), ([4, 5], True), ([8, 9], True)]
    assert read(c) == read(d) == [([2, 3], True), ([6, 7], True), ([8, 9], False)]


@pytest.mark.parametrize("total", [1, 2, 3])
def test_all_replicas_draw_the_same_rows_within_a_limit(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = gathered(processes(1, count=100, limit=7, seed=3), monkeypatch)
    drawn = [row for batch in alone for row in batch]
    assert [len(batch) for batch in alone] == [2, 2, 2, 1]
    assert drawn == sorted(set(drawn))
    readers = processes(total, count=100, limit=7, seed=3)
    assert {reader.count for reader in readers} == {7}
    assert gathered(readers, monkeypatch) == [alone] * total
    assert gathered(processes(1, count=100, limit=7, seed=4), monkeypatch) != [alone]


@pytest.mark.parametrize("limit", [10, 11])
def test_a_limit_that_is_no_limit_takes_all(limit: int) -> None:
    (reader,) = processes(1, limit=limit)
    assert [indices for indices, _ in read(reader)] == IN_ORDER


@pytest.mark.parametrize("loaders", [{"forget": [pairs(4, 1)]}, {"retain": pairs(4, 1)}, {}])
def test_rows_that_cannot_be_read_are_refused_by_the_name_of_the_method(loaders: Any) -> None:
    run: Any = SimpleNamespace(train_dataloader=loaders)
    with pytest.raises(MisconfigurationException, match=r"^SNIP reads the forget rows before training, but"):
        RunRows.of_role(run, "forget", "SNIP")


def test_a_loader_that_ends_first_is_named_with_the_mode() -> None:
    data = CombinedLoader({"forget": pairs(4, 1), "retain": pairs(8, 2)}, "max_size")
    with pytest.raises(MisconfigurationException, match=r"\['forget'\].* ended before the others.*max_size"):
        trainer(SimNPO(score=classifier_nll)).fit(LitNet(), data)
