"""The chunked likelihood is the plain one, with its gradient and its curvature, in less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional import likelihood
from lightning_unlearn.functional.likelihood import token_nll


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
