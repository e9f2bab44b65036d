"""Fingerprints of rows, which tell a cached reference that a row is not what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_unlearn.core.batches import row_fingerprint
from tests.user_module import indexed


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "index": torch.tensor([4, 7, 9]),
        "input_ids": torch.randint(0, 9, (3, 5), generator=generator),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
        "image": torch.randn(3, 2, 2, generator=generator),
        "nested": {"deep": {"label": torch.tensor([1, 0, 2])}, "pair": (torch.ones(3), [torch.zeros(3, 2)])},
        "name": ["a", "b", "c"],
        "weight": torch.tensor(0.5),
    }


CHANGES: dict[str, Any] = {
    "a token": lambda b: b["input_ids"][1].__setitem__(2, 99),
    "a pixel, by its last bit": lambda b: b["image"][1, 0].copy_(torch.nextafter(b["image"][1, 0], torch.tensor(9.0))),
    "a number in a dict in a dict": lambda b: b["nested"]["deep"]["label"].__setitem__(1, 5),
    "a number in a tuple": lambda b: b["nested"]["pair"][0].__setitem__(1, 5.0),
    "a number in a list in a tuple": lambda b: b["nested"]["pair"][1][0][1].__setitem__(0, 5.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_anywhere_in_a_row_changes_its_fingerprint_alone(change: str) -> None:
    changed = batch()
    CHANGES[change](changed)
    assert (row_fingerprint(changed) == row_fingerprint(batch())).tolist() == [True, False, True]


def test_values_that_change_places_change_the_fingerprint() -> None:
    swapped = batch()
    swapped["nested"]["pair"] = (swapped["nested"]["pair"][0] * 0, [torch.ones(3, 2)])
    assert not (row_fingerprint(swapped) == row_fingerprint(batch())).any()


def test_padding_index_names_and_the_other_rows_do_not_count() -> None:
    whole, part = batch(), batch()
    part = {
        **part,
        "index": torch.tensor([1, 2]),
        "input_ids": torch.cat([part["input_ids"][1:], torch.full((2, 3), 8)], 1),
        "attention_mask": torch.cat([part["attention_mask"][1:], torch.zeros(2, 3, dtype=torch.int64)], 1),
        "image": part["image"][1:],
        "nested": {"deep": {"label": torch.tensor([0, 2])}, "pair": (torch.ones(2), [torch.zeros(2, 2)])},
        "name": ["x", "y"],
    }
    part["input_ids"][0, 3:] = 5  # hidden by the mask
    assert torch.equal(row_fingerprint(part), row_fingerprint(whole)[1:])


def test_different_rows_have_different_fingerprints() -> None:
    rows = indexed(500, seed=1)
    stacked = {"index": torch.arange(500), "input": torch.stack([row["input"] for row in rows])}
    assert len(row_fingerprint(stacked).unique()) == 500
