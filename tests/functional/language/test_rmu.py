"""Numbers worked out by hand: control vector 2 * (1, 2, 2, 4) / 5, one token a row."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional.language.rmu import control_vector, rmu_forget, rmu_retain

CONTROL = 2 * torch.tensor([1.0, 2, 2, 4]) / 5
TOKENS = torch.tensor([[[1.0, 0, 0, 0]], [[0, 0, 0, 2.0]]])


def test_forget_of_the_fixture() -> None:
    found = rmu_forget(TOKENS, CONTROL, torch.ones(2, 1))
    torch.testing.assert_close(found, torch.tensor([1.05, 0.40]))
    torch.testing.assert_close(4 * found, torch.tensor([4.2, 1.6]))  # as the paper writes it: a sum over the width


def test_retain_is_the_same_distance_from_the_reference() -> None:
    found = rmu_retain(TOKENS, CONTROL.expand_as(TOKENS), torch.ones(2, 1))
    torch.testing.assert_close(found, torch.tensor([1.05, 0.40]))


def test_a_row_is_the_mean_of_the_tokens_that_count() -> None:
    row = TOKENS.transpose(0, 1)
    torch.testing.assert_close(rmu_forget(row, CONTROL, torch.ones(1, 2)), torch.tensor([0.725]))
    torch.testing.assert_close(rmu_forget(row, CONTROL, torch.tensor([[False, True]])), torch.tensor([0.40]))
    assert rmu_forget(row, CONTROL, torch.zeros(1, 2)).tolist() == [0]


def test_retain_and_its_gradient_are_0_at_the_reference() -> None:
    reference = torch.randn(2, 3, 4)
    hidden = reference.clone().requires_grad_()
    retain = rmu_retain(hidden, reference, torch.ones(2, 3))
    assert retain.tolist() == [0, 0]
    assert torch.autograd.grad(retain.sum(), hidden)[0].abs().max() == 0


def test_the_gradient_points_away_from_the_control_vector() -> None:
    hidden = TOKENS.clone().requires_grad_()
    (found,) = torch.autograd.grad(rmu_forget(hidden, CONTROL, torch.ones(2, 1)).sum(), hidden)
    torch.testing.assert_close(found, 2 / 4 * (TOKENS - CONTROL))


def test_bf16_activations_are_compared_in_fp32() -> None:
    hidden = torch.randn(1, 512, 64).bfloat16()
    found = rmu_forget(hidden, torch.full((64,), 1e-3), torch.ones(1, 512))
    assert found.dtype == torch.float32
    expected = (hidden.double() - 1e-3).square().mean().float()
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steering", [2.0, 20.0])
def test_the_control_vector_has_the_length_asked_for_and_no_negative_entry(steering: float) -> None:
    found = control_vector(4096, steering, seed=1)
    torch.testing.assert_close(found.norm(), torch.tensor(steering))
    assert (found >= 0).all()
    # For U[0, 1) entries, mean / root mean square = (1/2) / sqrt(1/3).
    assert found.mean() / (steering / 64) == pytest.approx(0.866, abs=0.02)


def test_the_control_vector_is_a_function_of_its_seed_alone() -> None:
    first = control_vector(8, 2.0, seed=1)
    state = torch.get_rng_state()
    assert torch.equal(control_vector(8, 2.0, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(control_vector(8, 2.0, seed=2), first)
