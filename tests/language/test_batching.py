"""Batches hold every row once, within their budget, and prefixes are those of all their rows."""

from __future__ import annotations

import random

import pytest

from lightning_unlearn.language.batching import common_head, like_lengths, plan


@pytest.mark.parametrize("max_tokens", [1, 50, 300, 10_000])
@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_batches_of_like_lengths(max_tokens: int, batch_size: int | None) -> None:
    draw = random.Random(max_tokens)
    lengths = [draw.randrange(1, 90) for _ in range(60)]
    batches = like_lengths(lengths, range(60), max_tokens, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(60))
    for batch in batches:
        width = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * width <= max_tokens
        assert batch_size is None or len(batch) <= batch_size


def test_a_large_batch_is_not_padded_much() -> None:
    lengths = [100] * 5 + [10] * 5
    assert like_lengths(lengths, range(10), 10_000) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert like_lengths([100, 10], range(2), 10_000) == [[0, 1]]


def test_the_beginning_of_all_sequences_counts_where_it_saves_a_pass() -> None:
    head = list(range(20))
    rows = [[*head, 50 + i, 1, 2] for i in range(14)]
    assert common_head(rows, 99) == 20
    assert common_head(rows, 18) == 0  # 18 * 13 tokens are hardly cheaper than none
    assert common_head([*rows, head], 19) == 19
    assert common_head(rows[:10], 99) == common_head([*rows, [7, 8]], 99) == common_head(rows, -1) == 0
    assert common_head(rows[:1], 99) == 0


@pytest.mark.parametrize("max_tokens", [1, 60, 300])
def test_keys_and_values_of_the_beginning_count_in_a_batch(max_tokens: int) -> None:
    lengths = [30 + i for i in range(40)]
    batches = plan(lengths, None, max_tokens, head=20)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(40))
    for batch in batches:
        assert len(batch.rows) == 1 or len(batch.rows) * max(lengths[row] for row in batch.rows) <= max_tokens


@pytest.mark.parametrize("shares", [1, 2, 7])
def test_prompts_of_several_answers_are_prefixes_of_their_batch(shares: int) -> None:
    draw = random.Random(shares)
    prompts = [tuple(draw.choices(range(9), k=draw.randrange(1, 40))) for _ in range(12)]
    rows = [prompt for prompt in prompts for _ in range(draw.randrange(1, 4))]
    lengths = [len(prompt) + draw.randrange(1, 20) for prompt in rows]
    batches = plan(lengths, rows, 80, shares=shares)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(rows)))
    assert len(batches) >= min(shares, len(set(prompts)))
    assert any(batch.prefix for batch in batches)
    for batch in batches:
        if batch.prefix:
            assert sorted(row for part in batch.parts for row in part) == sorted(batch.rows)
            assert batch.prefix == min(len(rows[row]) for row in batch.rows) - 1
            for part in batch.parts:
                width = max(lengths[row] - batch.prefix for row in part)
                assert len(part) == 1 or len(part) * width <= 80
