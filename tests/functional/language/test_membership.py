"""Membership scores worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_unlearn.functional import (
    gradient_norm,
    loss_score,
    lower_case_score,
    min_k,
    min_k_plus_plus,
    reference_score,
    token_statistics,
    zlib_score,
)

LOG_PROB = torch.tensor([-0.1, -2.0, -0.5, -3.0, -0.2], dtype=torch.float64)


@pytest.mark.parametrize(("k", "expected"), [(0.2, 3.0), (0.4, 2.5), (0.05, 3.0), (1.0, 1.16)])
def test_min_k_of_five_tokens(k: float, expected: float) -> None:
    assert min_k(LOG_PROB, k).item() == pytest.approx(expected, abs=1e-9)


def test_min_k_of_muse_is_nan_for_a_short_text() -> None:
    assert min_k(LOG_PROB, 0.05, "muse").isnan()
    assert min_k(LOG_PROB, 0.4, "muse").item() == pytest.approx(2.5, abs=1e-9)


def test_min_k_without_the_end_token() -> None:
    assert min_k(LOG_PROB[[0, 1, 2, 4, 3]], 0.2, drop_last=True).item() == pytest.approx(2.0, abs=1e-9)


def test_min_k_plus_plus_of_three_tokens() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    found = token_statistics(p.log() + 7, torch.tensor([1]))
    assert found.mean.item() == pytest.approx(-1.5 * math.log(2), abs=1e-9)
    assert found.variance.item() == pytest.approx((math.log(2) / 2) ** 2, abs=1e-9)
    assert found.variance.item() == pytest.approx(0.1201132535, abs=1e-9)
    assert min_k_plus_plus(*found[:3]).item() == pytest.approx(1.0, abs=1e-9)


def test_min_k_plus_plus_of_a_uniform_distribution_is_zero() -> None:
    found = token_statistics(torch.zeros(1, 7), torch.tensor([3]))
    assert found.variance.item() == pytest.approx(0, abs=1e-12)
    assert min_k_plus_plus(*found[:3]).item() == pytest.approx(0, abs=1e-3)


def test_loss_and_what_it_is_set_against() -> None:
    assert loss_score(LOG_PROB).item() == pytest.approx(1.16, abs=1e-12)
    assert reference_score(LOG_PROB, LOG_PROB - 1).item() == pytest.approx(-1, abs=1e-12)
    assert zlib_score(LOG_PROB, 29).item() == pytest.approx(0.04, abs=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="The model has 5 tokens and the reference 4"):
        reference_score(LOG_PROB, LOG_PROB[1:])
    with pytest.raises(ValueError, match=r"k must be a share of the tokens in \(0, 1\], but got 40"):
        min_k(LOG_PROB, 40)
    with pytest.raises(ValueError, match="at least one, but got shape"):
        min_k(LOG_PROB[:1], drop_last=True)
    with pytest.raises(ValueError, match="length must be that of compressed text"):
        zlib_score(LOG_PROB, 0)
    with pytest.raises(ValueError, match="variant must be 'ou' or 'muse'"):
        min_k(LOG_PROB, variant="soul")  # type: ignore[arg-type]


def test_gradient_norms_of_two_tensors() -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 0.0, 12.0]])]
    assert gradient_norm(gradients).item() == pytest.approx(8.5, abs=1e-9)
    assert gradient_norm(gradients, variant="global").item() == pytest.approx(13, abs=1e-9)
    assert gradient_norm(gradients, 1).item() == pytest.approx(9.5, abs=1e-9)
    assert gradient_norm(gradients, 1, "global").item() == pytest.approx(19, abs=1e-9)
    assert gradient_norm(gradients, math.inf).item() == pytest.approx(8, abs=1e-9)
    assert gradient_norm(gradients, math.inf, "global").item() == pytest.approx(12, abs=1e-9)


def test_lower_case_scores() -> None:
    text, lower = torch.tensor([-1.0, -3.0]), torch.tensor([-4.0])
    assert lower_case_score(text, lower).item() == pytest.approx(0.5, abs=1e-9)
    assert lower_case_score(text, lower, "soul").item() == pytest.approx(-2.0, abs=1e-9)
    with pytest.raises(ValueError, match="certain of every token"):
        lower_case_score(text, torch.zeros(3))


def test_gradient_norms_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        gradient_norm([])
    with pytest.raises(ValueError, match="variant"):
        gradient_norm([torch.ones(1)], variant="sum")  # type: ignore[arg-type]
