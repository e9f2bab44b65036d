"""Batches of several roles are joined where they can be stacked."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.reading import join


def test_join_pads_and_stacks_dicts() -> None:
    short = {
        "input_ids": torch.ones(2, 3, dtype=torch.int64),
        "attention_mask": torch.ones(2, 3, dtype=torch.bool),
        "labels": torch.ones(2, 3, dtype=torch.int64),
        "index": torch.tensor([4, 5]),
    }
    long = {k: torch.ones(1, 5, dtype=v.dtype) if v.dim() == 2 else torch.tensor([6]) for k, v in short.items()}
    whole = join([short, long])
    assert whole is not None
    assert whole["input_ids"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert whole["attention_mask"].tolist()[0] == [True, True, True, False, False]
    assert whole["labels"].tolist()[0] == [1, 1, 1, -100, -100]
    assert whole["index"].tolist() == [4, 5, 6]
    assert join([long, short])["labels"].tolist()[1] == [1, 1, 1, -100, -100]  # type: ignore[index]


class Row(NamedTuple):
    x: Tensor
    y: Tensor


def test_join_stacks_tuples_and_keeps_their_type() -> None:
    x, y = torch.randn(2, 3), torch.tensor([0, 1])
    joined = join([(x, y), (x + 1, y)])
    assert isinstance(joined, tuple)
    assert torch.equal(joined[0], torch.cat([x, x + 1]))
    assert isinstance(join([[x, y], [x, y]]), list)
    named = join([Row(x, y), Row(x, y)])
    assert isinstance(named, Row)
    assert named.y.tolist() == [0, 1, 0, 1]
    nested = join([{"pair": (x, y)}] * 3)
    assert nested is not None
    assert nested["pair"][0].shape == (6, 3)


@pytest.mark.parametrize(
    "batches",
    [
        [torch.zeros(2, 3), torch.zeros(2, 4)],
        [{"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 4)}],  # images and other numbers are not padded
        [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}],
        [{"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(2)}],
        [{"a": torch.zeros(2)}, (torch.zeros(2),)],
        [(torch.zeros(2),), (torch.zeros(2), torch.zeros(2))],
        [{"a": torch.zeros(2), "name": ["x", "y"]}] * 2,
        [{"a": torch.zeros(2), "weight": torch.tensor(0.5)}] * 2,
        [{"a": torch.zeros(2), "weight": 0.5}] * 2,
        ["abc", "abc"],
    ],
    ids=["widths", "floats", "keys", "more keys", "types", "lengths", "strings", "scalars", "numbers", "text"],
)
def test_join_gives_none_for_what_cannot_be_stacked(batches: list[Any]) -> None:
    assert join(batches) is None


def test_row_count_is_the_size_of_the_first_tensor() -> None:
    x = torch.zeros(3, 2)
    for batch in (x, (x, 1), {"a": x}, {"name": "abc", "a": x}, [{"a": x}], {"names": ["a", "b"], "a": x}, ([], x)):
        assert row_count(batch) == 3, batch
    with pytest.raises(TypeError, match="holds a tensor, but got dict"):
        row_count({"a": "text"})
