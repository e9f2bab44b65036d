"""Extraction strength, exact memorisation and probability of answers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional import answer_probability, exact_memorization, extraction_strength


def hits(*right: int, n: int = 5) -> torch.Tensor:
    return torch.tensor([i in right for i in range(n)])


def test_the_probability_of_two_tokens_is_their_geometric_mean() -> None:
    log_prob = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    assert -log_prob.mean().item() == pytest.approx(1.0397207708, abs=1e-9)
    assert answer_probability(log_prob).item() == pytest.approx(2**-1.5, abs=1e-9)


@pytest.mark.parametrize(
    ("right", "strict", "floored", "exact"),
    [
        ((0, 1, 2, 3, 4), 1.0, 1.0, 1.0),
        ((2, 3, 4), 0.6, 0.6, 0.6),
        ((0, 2, 3, 4), 0.6, 0.6, 0.8),
        ((0, 1, 2, 3), 0.0, 0.2, 0.8),
        ((), 0.0, 0.2, 0.0),
    ],
)
def test_five_tokens(right: tuple[int, ...], strict: float, floored: float, exact: float) -> None:
    hit = hits(*right)
    assert extraction_strength(hit).item() == pytest.approx(strict, abs=1e-12)
    assert extraction_strength(hit, "floored").item() == pytest.approx(floored, abs=1e-12)
    assert exact_memorization(hit).item() == pytest.approx(exact, abs=1e-12)


def test_the_end_token_can_be_left_out() -> None:
    hit = hits(0, 1, 2, 3)
    assert extraction_strength(hit, drop_last=True) == exact_memorization(hit, drop_last=True) == 1


def test_strength_is_at_most_memorisation_and_equal_only_if_the_misses_come_first() -> None:
    for code in range(2**6):
        hit = torch.tensor([bool(code >> i & 1) for i in range(6)])
        strength, memorised = extraction_strength(hit), exact_memorization(hit)
        assert strength <= memorised
        first_hit = hit.long().argmax() if hit.any() else 6
        assert (strength == memorised) == bool(hit[first_hit:].all())


@pytest.mark.parametrize("function", [extraction_strength, exact_memorization])
def test_an_answer_without_a_token_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"hit must have the values .* at least one, but has shape \(0,\)"):
        function(torch.tensor([True]), drop_last=True)  # type: ignore[operator]
    with pytest.raises(ValueError, match="log_prob must have"):
        answer_probability(torch.tensor([]))


def test_another_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant must be 'strict' or 'floored', but got 'loose'"):
        extraction_strength(hits(), "loose")  # type: ignore[arg-type]
