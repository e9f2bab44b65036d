"""Solutions and gradients of data consistency."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lightning_unlearn.functional.reconstruction.data_consistency import data_consistency, solve_normal_equations
from lightning_unlearn.reconstruction.operators import MultiCoilMRI

Normal = Callable[[Tensor], Tensor]


def operator(rows: int = 2, size: int = 8, dtype: torch.dtype = torch.complex128) -> MultiCoilMRI:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(rows, 3, size, size, dtype=torch.complex128, generator=generator)
    mask = torch.rand(rows, 1, 1, size, generator=generator) < 0.5
    return MultiCoilMRI((maps / maps.abs().square().sum(1, keepdim=True).sqrt()).to(dtype), mask)


def images(rows: int = 2, size: int = 8, dtype: torch.dtype = torch.complex128, seed: int = 1) -> Tensor:
    return torch.randn(rows, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(normal: Normal, size: int = 8) -> Tensor:
    """The matrix of each row. Shape (B, HW, HW)."""
    basis = torch.eye(size * size, dtype=torch.complex128).view(-1, size, size)
    columns = [normal(e.expand(2, -1, -1)).flatten(1) for e in basis]
    return torch.stack(columns, dim=2)


class Counted:
    def __init__(self, normal: Normal) -> None:
        self.normal, self.calls = normal, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.normal(x)


@pytest.mark.parametrize("weight", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_it_solves_what_a_dense_solver_does(weight: float, dtype: torch.dtype) -> None:
    normal, z, d = operator().normal, images(seed=1), images(seed=2)
    matrix = dense(normal) + weight * torch.eye(64)
    assert torch.linalg.eigvalsh(matrix).max() <= 1 + weight + 1e-9
    expected = torch.linalg.solve(matrix, (z + weight * d).flatten(1)).view_as(z)
    x = data_consistency(operator(dtype=dtype).normal, z.to(dtype), d.to(dtype), weight)
    torch.testing.assert_close(x, expected.to(dtype), atol=1e-5, rtol=0)


def test_nine_iterations_reach_1e_6_at_weight_1() -> None:
    op = operator()
    normal, z, d = Counted(op.normal), images(seed=1), images(seed=2)
    x = data_consistency(normal, z, d)
    assert normal.calls <= 1 + 9  # one for the residual of the start
    residual = op.normal(x) + x - (z + d)
    assert (residual.flatten(1).norm(dim=1) / (z + d).flatten(1).norm(dim=1)).max() < 1e-6


def test_one_iteration_where_everything_is_measured() -> None:
    z, d = images(seed=1), images(seed=2)
    normal = Counted(operator().with_mask(torch.ones(8, dtype=torch.bool)).normal)
    x = data_consistency(normal, z, d)
    assert normal.calls == 2
    torch.testing.assert_close(x, (z + d) / 2, atol=1e-14, rtol=0)


def test_a_solution_is_left_as_it_is() -> None:
    op, d = operator(), images()
    normal = Counted(op.normal)
    torch.testing.assert_close(data_consistency(normal, op.normal(d), d), d)
    assert normal.calls == 1


def test_gradients_of_both_inputs_and_of_the_weight() -> None:
    normal = operator(size=3).normal

    def solve(z: Tensor, d: Tensor, weight: Tensor) -> Tensor:
        return data_consistency(normal, z, d, weight, tolerance=1e-12)

    z, d = (images(size=3, seed=seed).requires_grad_() for seed in (1, 2))
    one, each = torch.tensor(0.7).double().requires_grad_(), torch.tensor([0.4, 1.3]).double().requires_grad_()
    assert gradcheck(solve, (z, d, one))
    for weight in (one, each):
        assert gradcheck(solve, (z, d, weight), check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(solve, (z, d, weight), fast_mode=True)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_the_gradient_of_the_denoised_image_is_the_weight_times_that_of_the_measurements(weight: float) -> None:
    z, d = images(seed=1).requires_grad_(), images(seed=2).requires_grad_()
    x = data_consistency(operator().normal, z, d, weight)
    of_z, of_d = torch.autograd.grad(x.abs().square().sum(), (z, d))
    assert of_z.abs().max() > 0.1
    torch.testing.assert_close(of_d, weight * of_z)


def test_gradients_are_those_of_the_iterations_without_keeping_them() -> None:
    """The gradient through 30 unrolled iterations, which autograd records one by one."""
    normal, z, d = operator().normal, images(seed=1).requires_grad_(), images(seed=2)
    x = torch.zeros_like(d)
    for _ in range(200):  # gradient descent on the same problem; its factor is 1/3
        x = x - (normal(x) + x - z - d) / 1.5
    unrolled = torch.autograd.grad((x.real**3).sum(), z)[0]
    y = data_consistency(normal, z, d, tolerance=1e-12)
    torch.testing.assert_close(torch.autograd.grad((y.real**3).sum(), z)[0], unrolled, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_a_row_does_not_depend_on_the_others(weight: float) -> None:
    op, z, d = operator(), images(seed=1), images(seed=2)
    z, d = z * torch.tensor([1.0, 1e-4])[:, None, None], d * torch.tensor([1.0, 1e-4])[:, None, None]
    together = data_consistency(op.normal, z, d, weight)
    for row in range(2):
        alone = MultiCoilMRI(op.maps[row : row + 1], op.mask[row : row + 1])
        one = data_consistency(alone.normal, z[row : row + 1], d[row : row + 1], weight)
        torch.testing.assert_close(together[row : row + 1], one, atol=1e-15, rtol=1e-12)


def test_rows_that_are_done_stand_still_and_rows_of_nan_hold_up_no_one() -> None:
    op, z, d = operator(), images(seed=1), images(seed=2)
    z[0] = op.normal(d)[0]  # solved by its start
    solved = data_consistency(op.normal, z, d, tolerance=0.0, iterations=100)
    assert solved.isfinite().all()
    torch.testing.assert_close(solved[0], d[0])
    z[0] = torch.nan
    normal = Counted(op.normal)
    broken = data_consistency(normal, z, d)
    assert broken[0].isnan().all()
    assert normal.calls <= 10
    torch.testing.assert_close(broken[1], solved[1], atol=1e-5, rtol=0)


def test_nothing_measured_and_nothing_denoised_is_0_with_finite_gradients() -> None:
    z, d = torch.zeros(2, 8, 8, dtype=torch.complex64).requires_grad_(), torch.zeros(2, 8, 8, dtype=torch.complex64)
    x = data_consistency(operator(dtype=torch.complex64).normal, z, d)
    x.abs().square().sum().backward()
    assert x.abs().max() == 0
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_products_of_the_jacobian_by_torch_func() -> None:
    normal, z, d, v = operator().normal, images(seed=1), images(seed=2), images(seed=3)

    def solve(z: Tensor) -> Tensor:
        return data_consistency(normal, z, d)

    _, forward = torch.func.jvp(solve, (z,), (v,))
    torch.testing.assert_close(forward, solve_normal_equations(normal, v), atol=1e-5, rtol=0)
    _, transposed = torch.func.vjp(solve, z)
    torch.testing.assert_close(transposed(v)[0], forward, atol=1e-5, rtol=0)


def test_maps_that_are_learned_are_refused() -> None:
    op = operator()
    learned = MultiCoilMRI(op.maps.requires_grad_(), op.mask)
    with pytest.raises(ValueError, match="operator requires a gradient"):
        data_consistency(learned.normal, images(), images())
    with torch.no_grad():
        data_consistency(learned.normal, images(), images())
