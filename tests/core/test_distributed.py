"""Replicas, and collective operations in a single process; tests/distributed has two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_unlearn.core import distributed
from lightning_unlearn.core.distributed import (
    Replica,
    all_true,
    average_over_ranks,
    full_tensor,
    gather_objects,
    load_full_tensor,
    mean_over_ranks,
    replica,
    sum_over_ranks,
)
from tests.helpers import trainer


def test_one_device_is_one_replica() -> None:
    assert replica(trainer()) == Replica(rank=0, total=1)
    assert replica(None) == Replica(rank=0, total=1)


def test_the_strategy_knows_the_replica_of_a_process() -> None:
    """Of four processes in two tensor-parallel groups, the second holds a part of the first replica."""
    strategy: Any = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": 0})
    assert replica(SimpleNamespace(strategy=strategy)) == Replica(rank=0, total=2)  # type: ignore[arg-type]


def test_each_process_is_a_replica_where_there_is_no_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    assert replica(None) == Replica(rank=3, total=4)
    assert replica(trainer()) == Replica(rank=0, total=1)


def test_collective_operations_of_one_process_give_back_what_they_take() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = mean_over_ranks(value)
    assert torch.equal(mean, value.detach())
    assert mean.data_ptr() != value.data_ptr()
    assert not mean.requires_grad
    assert [t.tolist() for t in average_over_ranks([value, value * 2])] == [[1, 2], [2, 4]]
    assert gather_objects("a") == ["a"]
    assert all_true(torch.tensor(True))
    assert not all_true(torch.tensor(False))
    total = value.detach().clone()
    sum_over_ranks(total)
    assert torch.equal(total, value.detach())
    whole = full_tensor(value)
    load_full_tensor(value, whole + 1)
    assert value.tolist() == [2, 3]
    assert whole.tolist() == [1, 2]
