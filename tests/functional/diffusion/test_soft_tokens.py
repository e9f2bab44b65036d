"""Where the tokens of an attack go, on prompts written out: 0 is the beginning, 9 the end of text and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_unlearn.functional.diffusion.soft_tokens import insert_tokens

PROMPTS = torch.tensor([[0, 1, 2, 3, 4, 5, 9, 9, 9, 9], [0, 6, 9, 9, 9, 9, 9, 9, 9, 9]])
LENGTHS = torch.tensor([5, 1])
TOKENS = torch.tensor([[71, 72], [81, 82]])

PLACES: dict[str, list[list[int]]] = {
    "prefix": [[0, 71, 72, 1, 2, 3, 4, 5, 9, 9], [0, 81, 82, 6, 9, 9, 9, 9, 9, 9]],
    "suffix": [[0, 1, 2, 3, 4, 5, 71, 72, 9, 9], [0, 6, 81, 82, 9, 9, 9, 9, 9, 9]],
    "mid": [[0, 1, 2, 71, 72, 3, 4, 5, 9, 9], [0, 81, 82, 6, 9, 9, 9, 9, 9, 9]],
    "spread": [[0, 1, 71, 2, 72, 3, 4, 5, 9, 9], [0, 81, 82, 6, 9, 9, 9, 9, 9, 9]],
    "every_3": [[0, 71, 1, 2, 3, 72, 4, 5, 9, 9], [0, 81, 6, 82, 9, 9, 9, 9, 9, 9]],
    "replace": [[0, 71, 72, 9, 9, 9, 9, 9, 9, 9], [0, 81, 82, 9, 9, 9, 9, 9, 9, 9]],
}


@pytest.mark.parametrize("placement", PLACES)
def test_ids_go_where_the_placement_says(placement: Any) -> None:
    assert insert_tokens(PROMPTS, LENGTHS, TOKENS, placement).tolist() == PLACES[placement]


def test_added_tokens_change_words_only() -> None:
    tokens = torch.full((2, 6), 10)
    assert insert_tokens(PROMPTS, LENGTHS, tokens, "add").tolist() == [
        [0, 11, 12, 13, 14, 15, 9, 9, 9, 9],
        [0, 16, 9, 9, 9, 9, 9, 9, 9, 9],
    ]


@pytest.mark.parametrize("placement", [*PLACES, "add"])
def test_embeddings_go_where_ids_go_and_pass_gradients_on(placement: Any) -> None:
    table = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    count = 5 if placement == "add" else 2
    tokens = torch.randn(2, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    row = insert_tokens(table[PROMPTS], LENGTHS, tokens, placement)
    assert row.shape == (2, 10, 3)
    assert torch.equal(row[:, 0], table[PROMPTS[:, 0]])
    (gradient,) = torch.autograd.grad(row.sum(), tokens)
    if placement == "add":
        assert torch.equal(row[0, 1:6], table[PROMPTS[0, 1:6]] + tokens[0])
        assert gradient[:, :, 0].tolist() == [[1.0] * 5, [1.0, 0.0, 0.0, 0.0, 0.0]]
    else:
        ids = insert_tokens(PROMPTS, LENGTHS, torch.tensor([[-2, -1], [-2, -1]]), placement)
        expected = torch.where(
            (ids < 0)[..., None], tokens.gather(1, (ids + 2).clamp(0, 1)[..., None].expand(-1, -1, 3)), table[ids]
        )
        assert torch.equal(row, expected)
        assert torch.equal(gradient, torch.ones_like(gradient))


def test_more_than_fits_is_refused() -> None:
    for placement in ("prefix", "every_3"):
        with pytest.raises(ValueError, match=r"4 tokens do not fit.*leave 3"):
            insert_tokens(PROMPTS, LENGTHS, torch.zeros(2, 4, dtype=torch.int64), placement)
    with pytest.raises(ValueError, match="a token for each of 5 words, but got 4"):
        insert_tokens(PROMPTS, LENGTHS, torch.zeros(2, 4, dtype=torch.int64), "add")
    with pytest.raises(ValueError, match="'middle'"):
        insert_tokens(PROMPTS, LENGTHS, TOKENS, "middle")  # type: ignore[arg-type]
