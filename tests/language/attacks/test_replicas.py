"""Rows of an attack that several processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import LitCausalLM
from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.language.attacks import replicas


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_process_has_all_results_of_an_uneven_count_in_order(
    rank: int, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, computed = list(range(7)), []

    def compute(part: list[int]) -> list[int]:
        computed.append(part)
        return [10 * item for item in part]

    def gathered(own: Any) -> list[Any]:
        return [own if other == rank else (other, [10 * item for item in items[other::3]]) for other in range(3)]

    monkeypatch.setattr(replicas, "replica", lambda _: Replica(rank, 3))
    monkeypatch.setattr(replicas, "gather_objects", gathered)
    assert replicas.over_replicas(LitCausalLM(str(tiny_lm)), items, compute) == [10 * item for item in items]
    assert computed == [items[rank::3]]


def test_a_hash_of_settings_does_not_depend_on_the_order_of_keys() -> None:
    assert replicas.digest({"a": 1, "b": ["é"]}) == replicas.digest({"b": ["é"], "a": 1})
    assert replicas.digest(["a"]) != replicas.digest(["b"])
