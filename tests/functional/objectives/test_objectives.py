"""Numbers worked out by hand: sequences A (2 tokens) and B (1 token) of known probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.kl import kl_divergence
from lightning_unlearn.functional.likelihood import length_normalised, sequence_nll, token_mean, token_nll
from lightning_unlearn.functional.objectives.gradient_ascent import gradient_ascent
from lightning_unlearn.functional.objectives.npo import npo
from lightning_unlearn.functional.objectives.simnpo import simnpo

LN2 = math.log(2)
NLL = torch.tensor([3 * LN2, 3 * LN2], dtype=torch.float64)  # A: p = 1/2, 1/4. B: p = 1/8.
REFERENCE = torch.tensor([2 * LN2, LN2], dtype=torch.float64)  # A: p = 1/2, 1/2. B: p = 1/2.
LENGTH = torch.tensor([2.0, 1.0], dtype=torch.float64)


def close(actual: Tensor, expected: float | list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def gradient(loss_of: object, nll: Tensor) -> Tensor:
    nll = nll.clone().requires_grad_()
    return torch.autograd.grad(loss_of(nll), nll)[0]  # type: ignore[operator]


def logits_of(probabilities: list[float], vocabulary: int = 5) -> Tensor:
    """Logits under which label 0 has each probability, and the others share the rest unevenly."""
    rows = []
    for p in probabilities:
        rest = torch.arange(1, vocabulary).double()
        rows.append(torch.cat([torch.tensor([p]), (1 - p) * rest / rest.sum()]).log())
    return torch.stack(rows)


def test_sequence_nll_of_the_fixture() -> None:
    logits = torch.zeros(2, 3, 5, dtype=torch.float64)
    logits[0, :2], logits[1, :1] = logits_of([1 / 2, 1 / 4]), logits_of([1 / 8])
    labels = torch.tensor([[-100, 0, 0], [-100, 0, -100]])
    nll, length = sequence_nll(logits, labels)
    close(nll, [3 * LN2, 3 * LN2])
    close(length, [2, 1])
    close(token_mean(nll, length), 2 * LN2)
    close(gradient_ascent(nll).mean(), -2.0794415)
    close(token_mean(gradient_ascent(nll), length), -1.3862944)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 12.8532307), (1.0, 0.6286087)])
def test_npo(beta: float, expected: float) -> None:
    close(npo(NLL, REFERENCE, beta=beta).mean(), expected)


@pytest.mark.parametrize(("beta", "weights"), [(0.1, [0.9653565, 0.9307961]), (1.0, [0.6666667, 0.4])])
def test_npo_gradient_is_the_weight_times_ascent(beta: float, weights: list[float]) -> None:
    close(gradient(lambda s: npo(s, REFERENCE, beta=beta).sum(), NLL), [-w for w in weights])


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 4.5])
def test_npo_at_the_reference(beta: float) -> None:
    close(npo(NLL, NLL, beta=beta).mean(), 2 * LN2 / beta)
    close(gradient(lambda s: npo(s, NLL, beta=beta).sum(), NLL), [-1, -1], 1e-12)


@pytest.mark.parametrize(
    ("beta", "margin", "expected"),
    [(2.5, 0.0, 0.0308808), (4.5, 0.0, 0.00207424), (0.1, 0.0, 12.3708230), (2.5, 1.0, 0.2839439)],
)
def test_simnpo(beta: float, margin: float, expected: float) -> None:
    close(simnpo(NLL, LENGTH, beta=beta, margin=margin).mean(), expected)


@pytest.mark.parametrize(("beta", "weights"), [(2.5, [0.1383667, 0.0109878]), (4.5, [0.0184103, 0.000172619])])
def test_simnpo_gradient_is_the_weight_over_the_length(beta: float, weights: list[float]) -> None:
    found = gradient(lambda s: simnpo(s, LENGTH, beta=beta).mean() * len(NLL), NLL)
    close(found, [-weights[0] / 2, -weights[1]], 1e-7)
    identity = 2 / (1 + torch.exp(beta * NLL / LENGTH)) / LENGTH
    torch.testing.assert_close(-found, identity, atol=1e-12, rtol=0)


def test_simnpo_near_beta_0_is_length_normalised_ascent() -> None:
    beta, margin = 1e-3, 0.5
    found = gradient(lambda s: simnpo(s, LENGTH, beta=beta, margin=margin).sum(), NLL)
    error = (found + 1 / LENGTH).abs() * LENGTH
    bound = beta * (length_normalised(NLL, LENGTH) - margin).abs() / 2
    assert (error <= bound + 1e-12).all()


def test_simnpo_decreases_to_0_where_ascent_has_no_floor() -> None:
    nll = torch.linspace(0, 50, 200, dtype=torch.float64)
    values = simnpo(nll, torch.ones_like(nll))
    assert (values.diff() < 0).all()
    assert values.min() > 0
    assert gradient_ascent(nll).min() == -50


def test_simnpo_does_not_change_when_every_token_is_doubled() -> None:
    torch.testing.assert_close(simnpo(2 * NLL, 2 * LENGTH), simnpo(NLL, LENGTH), atol=1e-12, rtol=0)


def test_kl_and_its_gradient_are_0_at_the_reference() -> None:
    reference = torch.randn(4, 7, dtype=torch.float64)
    logits = reference.clone().requires_grad_()
    divergence = kl_divergence(logits, reference)
    (found,) = torch.autograd.grad(divergence.sum(), logits)
    close(divergence, [0, 0, 0, 0], 1e-6)
    assert found.abs().max() < 1e-6


def test_kl_is_under_the_reference() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    reference = torch.tensor([[0.0, 3.0, 0.0]])
    p, q = reference.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(kl_divergence(logits, reference), (p * (p / q).log()).sum(-1))
    assert not torch.allclose(kl_divergence(logits, reference), kl_divergence(reference, logits))


def test_likelihoods_of_bf16_logits_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(512, 32_000) * 4, torch.randint(0, 32_000, (512,))
    exact = token_nll(logits.double(), labels).double().sum()
    found = token_nll(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    assert abs(found.sum() - exact) < 0.5  # a bf16 softmax is off by tens of nats
