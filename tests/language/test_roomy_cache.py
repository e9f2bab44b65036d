"""Caches that grow in place."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from lightning_unlearn.language.roomy_cache import keep_rows, with_room


def filled(rows: int, tokens: int) -> DynamicCache:
    cache = DynamicCache()
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        cache.update(*(torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2)), layer)
    return cache


def test_it_keeps_what_a_growing_cache_keeps() -> None:
    plain, roomy = filled(6, 3), with_room(filled(6, 3), 3)
    order = list(range(6))
    for going in (range(6), [0, 2, 3, 5], [1, 3]):
        chosen = keep_rows(roomy, list(going))
        assert sorted(chosen) == list(going)
        plain.batch_select_indices(torch.tensor(chosen))
        order = [order[i] for i in chosen]
        for layer in range(2):
            new = [torch.randn(len(chosen), 2, 1, 4) for _ in range(2)]
            expected = plain.update(*new, layer)
            found = roomy.update(*new, layer)
            assert all(map(torch.equal, found, expected))
    assert plain.get_seq_length() == roomy.get_seq_length() == 6
    assert order == [3, 5]  # the last ones have moved into the gaps: 0 5 2 3, then 3 5


def test_rows_that_go_on_stay_where_they_are() -> None:
    cache = with_room(filled(5, 2), 1)
    before = cache.layers[0].keys.data_ptr()
    assert keep_rows(cache, [0, 1, 3]) == [0, 1, 3]
    assert cache.layers[0].keys.data_ptr() == before
    assert cache.layers[0].keys.shape == (3, 2, 2, 4)
