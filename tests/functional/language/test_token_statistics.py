"""Statistics of logits against fp64, whatever their type, shift and size."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional import token_statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_they_are_those_of_fp64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(9, 70_001, generator=generator)).to(dtype)
    labels = torch.randint(70_001, (9,), generator=generator)
    labels[0] = logits[0].argmax()
    found = token_statistics(logits, labels)
    log_p = logits.double().log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1)
    expected = (
        log_p[torch.arange(9), labels],
        mean,
        (log_p.exp() * log_p**2).sum(-1) - mean**2,
        log_p.argmax(-1) == labels,
    )
    assert found.hit.tolist() == [True] + [False] * 8
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), wanted.double(), atol=2e-5, rtol=2e-5)
    assert found.log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(*(token_statistics(z, torch.arange(5)) for z in (logits, logits + 123)), strict=True):
        torch.testing.assert_close(one, other)


def test_masked_tokens_leave_the_moments_finite() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    found = token_statistics(logits, torch.tensor([2]))
    assert found.log_prob.item() == -torch.inf
    assert found.mean.item() == pytest.approx(-(torch.tensor(2.0).log().item()))
    assert found.variance.item() == pytest.approx(0, abs=1e-12)


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    assert token_statistics(torch.tensor([[0.0, 1.0, 1.0]] * 2), torch.tensor([1, 2])).hit.tolist() == [True, False]
