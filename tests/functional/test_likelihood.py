"""Likelihoods in chunks are the plain ones in less memory; sums over rows have one order and two derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from lightning_unlearn.functional import likelihood
from lightning_unlearn.functional.likelihood import row_sum, token_nll


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_CHUNK", 3 * 11)  # three rows of eleven logits


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = (torch.randn(10, 11) * 5).to(dtype).requires_grad_()
    return logits, torch.randint(0, 11, (10,)), torch.randn(10)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient(dtype: torch.dtype) -> None:
    logits, labels, weights = example(dtype)
    expected = F.cross_entropy(logits.float(), labels, reduction="none")
    torch.testing.assert_close(token_nll(logits, labels), expected)
    (found,) = torch.autograd.grad((token_nll(logits, labels) * weights).sum(), logits)
    (plain,) = torch.autograd.grad((expected * weights).sum(), logits)
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain)


@pytest.mark.usefixtures("_small_chunks")
def test_second_derivative() -> None:
    logits, labels, weights = example()
    direction = torch.randn_like(logits)
    products = []
    for nll in (token_nll(logits, labels), F.cross_entropy(logits, labels, reduction="none")):
        (gradient,) = torch.autograd.grad((nll * weights).sum(), logits, create_graph=True)
        products.append(torch.autograd.grad((gradient * direction).sum(), logits)[0])
    torch.testing.assert_close(*products)


def test_no_fp32_copy_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.float32:
                largest = max(largest, out.numel())
            return out

    monkeypatch.setattr(likelihood, "_CHUNK", 3 * 11)
    logits, labels, _ = example(torch.bfloat16)
    with Watch():
        token_nll(logits, labels).sum().backward()
    assert 0 < largest <= 3 * 11


# ---- sums over rows --------------------------------------------------------------------------------------------------

ROWS = torch.tensor([0, 0, 0, 2, 2, 4])  # rows 1, 3 and 5 are empty


def test_row_sum_is_index_add_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (5000,), generator=generator).sort().values
    values = torch.randn(5000, generator=generator) * torch.randn(5000, generator=generator).exp()
    expected = torch.zeros(60).index_add(0, rows, values)
    assert torch.equal(row_sum(values, rows, 60), expected)
    assert torch.equal(row_sum(values, rows, 60), row_sum(values, rows, 60))


def test_rows_without_values_sum_to_0() -> None:
    assert row_sum(torch.ones(6), ROWS, 6).tolist() == [3, 0, 2, 0, 1, 0]
    assert row_sum(torch.ones(0), ROWS[:0], 3).tolist() == [0, 0, 0]


def test_row_sum_has_two_derivatives() -> None:
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: row_sum(v.sin(), ROWS, 6).exp(), values)
    assert torch.autograd.gradgradcheck(lambda v: row_sum(v.sin(), ROWS, 6).exp(), values)


def test_row_sum_runs_under_the_transforms_of_torch_func() -> None:
    def loss(values: Tensor) -> Tensor:
        return row_sum(values, ROWS, 6).square().sum()

    values = torch.randn(3, 6)
    sums = torch.stack([row_sum(v, ROWS, 6) for v in values])
    assert torch.equal(vmap(row_sum, (0, None, None))(values, ROWS, 6), sums)
    expected = 2 * torch.stack([row_sum(v, ROWS, 6)[ROWS] for v in values])
    torch.testing.assert_close(vmap(grad(loss))(values), expected)
    torch.testing.assert_close(torch.func.hessian(loss)(values[0]), 2 * (ROWS[:, None] == ROWS).float())


@pytest.mark.gpu
def test_row_sum_is_the_same_in_every_run_on_a_gpu() -> None:
    rows = torch.randint(0, 50, (1 << 20,)).sort().values.cuda()
    values = torch.randn(1 << 20).cuda()
    assert all(torch.equal(row_sum(values, rows, 50), row_sum(values, rows, 50)) for _ in range(10))
