"""Keyed noise, and perturbations of sharpness-aware minimization."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_unlearn.functional import asam_perturbation, gaussian_noise, npo, sam_perturbation


def test_the_perturbation_has_length_rho_along_the_gradient() -> None:
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(sam_perturbation(gradient, 0.5), torch.tensor([0.3, 0.4], dtype=torch.float64))
    parts = [sam_perturbation(g, 0.5, norm=torch.tensor(5.0)) for g in gradient]
    torch.testing.assert_close(torch.stack(parts), torch.tensor([0.3, 0.4], dtype=torch.float64))
    assert torch.equal(sam_perturbation(torch.zeros(2), 0.5), torch.zeros(2))


def test_the_adaptive_perturbation_does_not_depend_on_the_scale_of_a_weight() -> None:
    gradient, weight = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -0.5])
    epsilon = asam_perturbation(gradient, weight, 0.1)
    assert (epsilon / weight.abs()).norm().item() == pytest.approx(0.1)
    scale = torch.tensor([10.0, 0.1])  # a weight ten times as large has a tenth of the gradient
    torch.testing.assert_close(asam_perturbation(gradient / scale, weight * scale, 0.1), epsilon * scale)


def test_a_row_has_its_noise_in_whatever_batch_it_is() -> None:
    whole = gaussian_noise(torch.zeros(5, 3), 4, key=(7,))
    part = gaussian_noise(torch.zeros(2, 3), 4, key=(7,), rows=[3, 1])
    assert torch.equal(part, whole[:, [3, 1]])
    assert not torch.equal(whole, gaussian_noise(torch.zeros(5, 3), 4, key=(8,)))
    assert len(whole.unique()) == whole.numel()


def test_noise_is_standard_normal_also_in_either_part_of_complex_numbers() -> None:
    noise = gaussian_noise(torch.zeros(2, 100, 100, dtype=torch.complex64), 4, key=(0,))
    assert noise.dtype == torch.complex64
    for part in (noise.real, noise.imag):
        assert part.mean().abs() < 0.02
        assert part.std().item() == pytest.approx(1.0, abs=0.01)
    assert (noise.real * noise.imag).mean().abs() < 0.02


def test_half_precision_has_the_rounded_noise_of_fp32() -> None:
    half, single = (gaussian_noise(torch.zeros(2, 8, dtype=kind), 1, (0,)) for kind in (torch.bfloat16, torch.float32))
    assert torch.equal(half, single.to(torch.bfloat16))


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be even, not 3"):
        gaussian_noise(torch.zeros(1), 3, (0,), antithetic=True)
    with pytest.raises(ValueError, match="there are 1 for 2 rows"):
        gaussian_noise(torch.zeros(2), 2, (0,), rows=[0])


@pytest.mark.parametrize(("beta", "value"), [(0.0225, 61.613), (0.1, 13.863)])
def test_npo_at_the_reference_is_gradient_ascent_of_weight_one(beta: float, value: float) -> None:
    nll = torch.tensor([5.0, 1005.0], dtype=torch.float64, requires_grad=True)
    loss = npo(nll, torch.full((2,), 5.0, dtype=torch.float64), beta=beta)
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(2 * math.log(2) / beta) == pytest.approx(value, abs=1e-3)
    assert nll.grad is not None
    assert nll.grad[0].item() == pytest.approx(-1.0)
    assert -1e-9 < nll.grad[1].item() < 0
