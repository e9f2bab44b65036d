"""Which rows meet: a function of (seed, epoch, batch), for any number of processes, resumed or not."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_unlearn import (
    ForgetRetainDataModule,
    GradientAscent,
    PairLoader,
    PairSampler,
    SimNPO,
    UnlearnMonitor,
    classifier_nll,
)
from lightning_unlearn.core.distributed import Replica
from tests.helpers import Recorder, trainer
from tests.user_module import DictNet, indexed

Choices = list[dict[str, list[int]]]


def sampler(forget: int = 13, retain: int = 7, size: int = 4, **options: Any) -> PairSampler:
    batch_sizes = {"forget": size, "retain": options.pop("retain_size", size)}
    return PairSampler({"forget": forget, "retain": retain}, batch_sizes, **{"driver": "forget", "seed": 0, **options})


def epoch(pairing: PairSampler, number: int = 0) -> Choices:
    pairing.set_epoch(number)
    batches = list(pairing)
    assert [e for e, _ in batches] == [number] * len(batches)
    return [rows for _, rows in batches]


def rows(choices: Choices, role: str) -> list[int]:
    return list(chain.from_iterable(batch[role] for batch in choices))


def on_replicas(total: int, number: int = 0, **options: Any) -> list[Choices]:
    return [epoch(sampler(share=Replica(rank, total), **options), number) for rank in range(total)]


# ---- the pairs of an epoch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("driver", "count", "batches"), [("forget", 13, 4), ("retain", 7, 2)])
def test_an_epoch_passes_each_driver_row_once(driver: str, count: int, batches: int) -> None:
    pairing = sampler(driver=driver)
    assert len(pairing) == batches
    for number in range(5):
        choices = epoch(pairing, number)
        assert len(choices) == batches
        assert sorted(rows(choices, driver)) == list(range(count))


@pytest.mark.parametrize(("driver", "other", "count"), [("forget", "retain", 7), ("retain", "forget", 13)])
@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_the_other_role_is_covered_evenly(driver: str, other: str, count: int, size: int) -> None:
    pairing = sampler(driver=driver, size=size)
    visits: Counter[int] = Counter()
    for number in range(5):
        visits.update(rows(epoch(pairing, number), other))
        each, more = divmod(visits.total(), count)
        assert sum(v == each + 1 for v in visits.values()) == more
        assert sum(visits[i] == each for i in range(count)) == count - more


def test_batch_sizes_are_per_role() -> None:
    assert [(len(b["forget"]), len(b["retain"])) for b in epoch(sampler(forget=8, retain_size=6))] == [(4, 6)] * 2


def test_seed_and_epoch_decide_the_pairs_and_nothing_else() -> None:
    pairing = sampler()
    first = epoch(pairing, 3)
    torch.manual_seed(123)
    epoch(pairing, 1)
    assert epoch(pairing, 3) == first == epoch(sampler(), 3)
    for seed, number in ((0, 2), (1, 3), (2**32 - 1, 3)):
        other = epoch(sampler(seed=seed), number)
        assert other != first
        assert rows(other, "forget") != rows(first, "forget")


def test_pairs_change_between_epochs() -> None:
    def partners(number: int) -> set[tuple[int, int]]:
        choices = epoch(sampler(forget=8, retain=8, size=1), number)
        return {(batch["forget"][0], batch["retain"][0]) for batch in choices}

    assert len(partners(0) & partners(1)) < 8


def test_a_loader_made_before_there_are_processes_is_shared_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ForgetRetainDataModule(indexed(8, 1), indexed(8, 2), batch_size=2).train_dataloader()
    assert len(loader) == 4
    monkeypatch.setattr("lightning_unlearn.core.distributed.world_size", lambda: 2)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr("lightning_unlearn.core.distributed.rank", lambda rank=rank: rank)
        found.append(torch.cat([batch["forget"]["index"] for batch in loader]).tolist())
    assert len(loader) == 2
    assert sorted(found[0] + found[1]) == list(range(8))


def test_coverage_is_the_share_of_rows_visited() -> None:
    pairing = sampler(forget=4, retain=100, size=2)  # two batches of two retain rows an epoch
    assert [pairing.coverage("retain", n) for n in (0, 1, 5, 25, 26)] == [0.0, 0.04, 0.2, 1.0, 1.0]
    assert [pairing.coverage("forget", n) for n in (0, 1)] == [0.0, 1.0]
    seen = set(chain.from_iterable(rows(epoch(pairing, n), "retain") for n in range(5)))
    assert len(seen) == pairing.coverage("retain", 5) * 100


def test_the_coverage_of_a_run_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    data = ForgetRetainDataModule(indexed(4, 1), indexed(100, 2), batch_size=2)
    with caplog.at_level("INFO"):
        trainer(SimNPO(score=classifier_nll), max_epochs=5).fit(DictNet(), data)
    assert "5 epochs over forget visit 20% of the retain rows." in caplog.text


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize("driver", ["forget", "retain"])
def test_two_processes_see_the_pairs_of_one_with_twice_the_batch(driver: str, bucketed: bool) -> None:
    options: dict[str, Any] = {"forget": 48, "retain": 40, "driver": driver}
    if bucketed:
        options["lengths"] = {"forget": torch.arange(48) % 11, "retain": torch.arange(40) % 7}
    for number in (0, 3):
        one = epoch(sampler(size=8, **options), number)
        two = on_replicas(2, number, size=4, **options)
        joined = [{role: sorted(a[role] + b[role]) for role in a} for a, b in zip(*two, strict=True)]
        assert joined == [{role: sorted(chosen) for role, chosen in batch.items()} for batch in one]


@pytest.mark.parametrize("forget", [1, 2, 3, 12, 13, 14])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_process_gets_as_many_rows_in_every_batch(forget: int, ranks: int) -> None:
    found = on_replicas(ranks, forget=forget, size=2)
    shapes = [[(len(b["forget"]), len(b["retain"])) for b in choices] for choices in found]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(0 < count <= 2 for count, _ in shapes[0])
    visits = Counter(chain.from_iterable(rows(choices, "forget") for choices in found))
    assert set(visits) == set(range(forget))
    if forget >= ranks:
        assert visits.total() - forget < ranks  # at most one row more on each of the other processes


# ---- padding ---------------------------------------------------------------------------------------------------------


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = torch.randint(5, 200, (103,), generator=torch.Generator().manual_seed(0))

    def padded(choices: Choices) -> int:
        return sum(int(lengths[b["forget"]].max()) * len(b["forget"]) for b in choices)

    plain, bucketed = epoch(sampler(forget=103)), epoch(sampler(forget=103, lengths={"forget": lengths}))
    assert sorted(rows(bucketed, "forget")) == list(range(103))
    waste = [padded(choices) - int(lengths.sum()) for choices in (plain, bucketed)]
    assert waste[1] < 0.3 * waste[0]
    assert rows(bucketed, "retain") != sorted(rows(bucketed, "retain"))


def test_bucketing_leaves_the_order_of_batches_random() -> None:
    lengths = torch.arange(32)
    choices = epoch(sampler(forget=32, lengths={"forget": lengths}))
    assert sorted(rows(choices, "forget")) == list(range(32))
    first = [batch["forget"][0] for batch in choices]
    assert first != sorted(first)


# ---- resume ----------------------------------------------------------------------------------------------------------


def data(forget: int = 13, retain: int = 7, **options: Any) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(forget, 1), indexed(retain, 2), **{"batch_size": 4, **options})


def chosen(batch: Any) -> dict[str, list[int]]:
    return {role: part["index"].tolist() for role, part in batch.items()}


def one_epoch(loader: PairLoader, number: int) -> Choices:
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return [chosen(batch) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("done", "served"), [(0, 1), (0, 3), (2, 1), (1, 2)])
def test_resume_in_mid_epoch_yields_the_batches_that_are_left(workers: int, done: int, served: int) -> None:
    whole = data().train_dataloader()
    expected = [one_epoch(whole, number) for number in range(done + 2)]
    assert len(expected[0]) == len(whole) == 4

    first = data(num_workers=workers).train_dataloader()
    for number in range(done):
        one_epoch(first, number)
    first.sampler.set_epoch(done)  # type: ignore[attr-defined]
    batches = iter(first)
    assert [chosen(next(batches)) for _ in range(served)] == expected[done][:served]
    state = first.state_dict()

    resumed = data(num_workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    assert one_epoch(resumed, done) == expected[done][served:]
    assert one_epoch(resumed, done) == expected[done]
    assert one_epoch(resumed, done + 1) == expected[done + 1]


def test_a_state_taken_after_an_epoch_starts_the_next_one() -> None:
    loader = data().train_dataloader()
    one_epoch(loader, 0)
    resumed = data().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert one_epoch(resumed, 1) == one_epoch(data().train_dataloader(), 1)


def test_a_second_resume_in_the_same_epoch_goes_on_from_there() -> None:
    expected = one_epoch(data().train_dataloader(), 0)
    state = data().train_dataloader().state_dict()
    for step in range(4):
        loader = data().train_dataloader()
        loader.load_state_dict(state)
        assert chosen(next(iter(loader))) == expected[step]
        state = loader.state_dict()


def seen(ckpt_path: Path | None = None, save: Path | None = None, after: int = -1, **options: Any) -> list[Any]:
    """The rows of every batch of a run, which is saved after one of its steps."""

    def save_it(run: L.Trainer, *_: Any) -> None:
        if run.global_step == after:
            run.save_checkpoint(save)  # type: ignore[arg-type]

    record = Recorder(
        on_train_batch_start=lambda run, _, batch, __: (run.current_epoch, chosen(batch)), on_train_batch_end=save_it
    )
    trainer(SimNPO(score=classifier_nll), record, **options).fit(DictNet(), data(), ckpt_path=ckpt_path)
    return record.values


@pytest.mark.parametrize("resumed", [{}, {"max_steps": 12}], ids=["epochs", "steps"])
@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_a_resumed_trainer_meets_the_rows_it_would_have_met(
    steps: int, resumed: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "part.ckpt"
    whole = seen(save=path, after=steps, max_epochs=3)
    assert len(whole) == 12
    assert seen(path, max_epochs=3, **resumed) == whole[steps:]


@pytest.mark.parametrize("resumed", [{"max_epochs": 4}, {"max_steps": 12}], ids=["epochs", "steps"])
def test_a_trainer_resumed_after_limited_epochs_meets_the_rows_it_would_have_met(
    resumed: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "part.ckpt"
    whole = seen(save=path, after=6, max_epochs=4, limit_train_batches=3)
    assert seen(path, limit_train_batches=3, **{"max_epochs": -1, **resumed}) == whole[6:]


# ---- the data module -------------------------------------------------------------------------------------------------


def test_rows_get_an_index_that_always_names_the_same_row() -> None:
    plain = data()
    for name, count in (("forget", 13), ("retain", 7)):
        batches = list(plain.val_dataloader()[name])
        assert torch.cat([b["index"] for b in batches]).tolist() == list(range(count))
    inputs = torch.stack([row["input"] for row in indexed(13, 1)])
    for batch in plain.train_dataloader():
        assert torch.equal(batch["forget"]["input"], inputs[batch["forget"]["index"]])


def test_rows_that_have_an_index_keep_it() -> None:
    own = [{**row, "index": 100 + i} for i, row in enumerate(indexed(4, 1))]
    (batch,) = ForgetRetainDataModule(own).train_dataloader()
    assert sorted(batch["forget"]["index"].tolist()) == [100, 101, 102, 103]


def test_tuples_pass_through() -> None:
    (batch,) = ForgetRetainDataModule(TensorDataset(torch.arange(4)), TensorDataset(torch.arange(9))).train_dataloader()
    assert sorted(batch["forget"][0].tolist()) == [0, 1, 2, 3]
    assert batch["retain"][0].shape == (4,)


def test_heldout_rows_are_evaluated_and_never_trained_on() -> None:
    plain = ForgetRetainDataModule(indexed(4, 1), indexed(4, 2), {"other": indexed(3, 3)})
    assert list(plain.val_dataloader()) == list(plain.test_dataloader()) == ["forget", "retain", "other"]
    (batch,) = plain.train_dataloader()
    assert set(batch) == {"forget", "retain"}


def test_without_retain_rows_the_batch_has_the_forget_rows_alone() -> None:
    (batch,) = ForgetRetainDataModule(indexed(4, 1)).train_dataloader()
    assert set(batch) == {"forget"}


def test_a_monitored_run_needs_no_retain_rows() -> None:
    monitor = UnlearnMonitor(score=classifier_nll)
    trainer(GradientAscent(score=classifier_nll), monitor).fit(DictNet(), ForgetRetainDataModule(indexed(4, 1)))
    assert [set(e.metrics) for e in monitor.history] == [{"forget_nll"}] * 2


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_overfit_batches_is_an_error_that_names_the_way_out(fraction: float) -> None:
    with pytest.raises(TypeError, match=r"overfit_batches.*limit_train_batches"):
        trainer(SimNPO(score=classifier_nll), overfit_batches=fraction).fit(DictNet(), data())
