"""Objectives on classifiers against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.functional.classification.adaptive_alpha import adaptive_alpha, output_distance
from lightning_unlearn.functional.classification.distillation import distillation
from lightning_unlearn.functional.classification.l1_sparse import l1_weight
from lightning_unlearn.functional.classification.label_privacy import label_privacy
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing, smoothed_targets
from lightning_unlearn.functional.classification.random_labels import random_labels
from lightning_unlearn.functional.classification.synaptic_dampening import synaptic_dampening
from lightning_unlearn.functional.classification.ugradsl import ugradsl
from tests.functional.objectives.test_objectives import close

PEAKED = torch.tensor([[0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
THREE = torch.tensor([3])
Z, ZERO = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])


def loss_and_gradient(logits: Tensor, labels: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = generalized_label_smoothing(logits, labels, alpha).sum()
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(
    ("classes", "alpha", "true", "other"),
    [
        (10, -0.2, 1.18, -0.02),
        (10, 0.2, 0.82, 0.02),
        (10, -1.0, 1.9, -0.1),
        (10, -8.0, 8.2, -0.8),
        (100, -0.2, 1.198, -0.002),
        (3, -0.3, 1.2, -0.1),
    ],
)
def test_smoothed_targets(classes: int, alpha: float, true: float, other: float) -> None:
    target = smoothed_targets(torch.tensor([1]), classes, alpha)
    close(target[0], [other, true] + [other] * (classes - 2))
    close(target.sum(), 1.0, 1e-5)


@pytest.mark.parametrize("alpha", [-8.0, -0.2, 0.0, 0.7])
def test_uniform_logits_cost_ln_k_at_any_rate(alpha: float) -> None:
    close(generalized_label_smoothing(torch.zeros(1, 10), THREE, alpha), [2.302585093])


@pytest.mark.parametrize(
    ("alpha", "loss", "true", "other"),
    [
        (0.0, 0.058873935, -0.057174381, 0.006352709),
        (-0.2, -0.841126065, -0.237174381, 0.026352709),
        (0.2, 0.958873935, 0.122825619, -0.013647291),
        (-1.0, -4.441126065, -0.957174381, 0.106352709),
    ],
)
def test_generalized_label_smoothing_of_peaked_logits(alpha: float, loss: float, true: float, other: float) -> None:
    found, gradient = loss_and_gradient(PEAKED, THREE, alpha)
    close(found, loss)
    close(gradient[0], [true if k == 3 else other for k in range(10)])


def test_generalized_label_smoothing_of_three_classes() -> None:
    found, gradient = loss_and_gradient(Z, ZERO, -0.3)
    close(found, 0.107605964)
    close(gradient[0], [-0.534759, 0.344728, 0.190031])


@pytest.mark.parametrize("alpha", [-2.0, -0.2, 0.3])
def test_it_is_the_cross_entropy_with_the_soft_target(alpha: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    soft = F.cross_entropy(logits, smoothed_targets(labels, 5, alpha), reduction="none")
    torch.testing.assert_close(generalized_label_smoothing(logits, labels, alpha), soft)
    _, gradient = loss_and_gradient(logits, labels, alpha)
    torch.testing.assert_close(gradient, logits.softmax(1) - smoothed_targets(labels, 5, alpha))
    close(gradient.sum(1), [0.0] * 6)
    shifted = generalized_label_smoothing(logits + 3, labels, alpha)
    torch.testing.assert_close(shifted, generalized_label_smoothing(logits, labels, alpha))


def test_torchs_own_smoothing_ignores_a_negative_rate() -> None:
    close(F.cross_entropy(PEAKED, THREE, label_smoothing=-0.2), 0.058873935)
    close(F.cross_entropy(PEAKED, THREE, label_smoothing=0.2), 0.958873935)


def test_a_rate_for_each_row() -> None:
    logits, labels = torch.cat([PEAKED, PEAKED]), torch.tensor([3, 3])
    same = generalized_label_smoothing(logits, labels, torch.tensor([-0.2, -0.2]))
    assert torch.equal(same, generalized_label_smoothing(logits, labels, -0.2))
    close(generalized_label_smoothing(logits, labels, torch.tensor([0.0, -1.0])), [0.058873935, -4.441126065])


def test_two_classes_pay_for_half_the_margin() -> None:
    logits = torch.tensor([[1.5, -0.5]])
    difference = generalized_label_smoothing(logits, ZERO, -0.6) - F.cross_entropy(logits, ZERO)
    close(difference, [-0.3 * 2.0])


def test_bf16_logits_are_cast_up_first() -> None:
    close(generalized_label_smoothing(PEAKED.bfloat16(), THREE, -0.2), [-0.841126065])


def test_the_mixed_loss() -> None:
    nll = F.cross_entropy(Z, ZERO)
    close(ugradsl(nll, generalized_label_smoothing(Z, ZERO, -0.3).mean(), p=0.5), 0.15)
    close(ugradsl(nll, generalized_label_smoothing(Z, ZERO, 0.0).mean(), p=0.5), 0.0)


def test_distances() -> None:
    retain, forget = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    close(output_distance(retain, forget)[0], [0.0, 0.5, 1.0])
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    close(output_distance(p.log(), q.log(), "tv"), [[0.7]])  # type: ignore[list-item]
    close(output_distance(retain, forget, "euclid")[0], [0.25, math.sqrt(2) / 4, 1.0])
    close(output_distance(retain, retain, "euclid"), [[0.0]])  # type: ignore[list-item]


def test_adaptive_alpha_by_both_rules() -> None:
    retain = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    forget = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])  # near 2, 4 and 0 of the retain rows
    close(adaptive_alpha(retain, forget, beta=0.4), [-0.5, 0.0, -1.0])
    close(adaptive_alpha(retain, forget, beta=0.4, rule="density", scale=2.0), [-1.0, -2.0, 0.0])


@pytest.mark.parametrize(("beta", "isolation", "density"), [(0.0, -2.0, 0.0), (1.01, 0.0, -2.0)])
def test_adaptive_alpha_at_the_ends(beta: float, isolation: float, density: float) -> None:
    close(adaptive_alpha(Z, Z, beta=beta, scale=2.0), [isolation])
    close(adaptive_alpha(Z, Z, beta=beta, scale=2.0, rule="density"), [density])


def test_half_precision_does_not_reach_the_distances() -> None:
    torch.manual_seed(0)
    retain, forget = torch.randn(8, 5), torch.randn(8, 5)
    expected = output_distance(retain, forget)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(output_distance(retain, forget), expected)


def test_label_privacy() -> None:
    assert label_privacy(-0.5, 1.5, 10) == 0.0
    assert label_privacy(-0.2, 1.5, 10) == pytest.approx(2.7726, abs=1e-4)
    with pytest.raises(ValueError, match="argument is -8"):
        label_privacy(-0.2, 1.02, 10)
    with pytest.raises(ValueError, match="negative"):
        label_privacy(0.2, 1.5, 10)


def test_random_labels_are_uniform_over_the_wrong_classes_and_come_again() -> None:
    labels, key = torch.arange(4).repeat(10_000), torch.arange(40_000)
    found = random_labels(labels, 4, key)
    assert torch.equal(found, random_labels(labels, 4, key))
    counts = torch.bincount((found - labels) % 4, minlength=4)
    assert counts[0] == 0
    assert (counts[1:] - 40_000 / 3).abs().max() < 5 * math.sqrt(40_000 * 2 / 9)
    counts = torch.bincount(random_labels(labels, 4, key, exclude_true=False), minlength=4)
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(40_000 * 3 / 16)


def test_random_labels_need_two_classes() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        random_labels(ZERO, 1, ZERO)


def test_l1_weight() -> None:
    assert [l1_weight(5e-4, e, 10) for e in (0, 5, 9, 10)] == [5e-4, 2.5e-4, pytest.approx(5e-5), 0.0]
    assert [l1_weight(1.0, e, 4, no_l1_epochs=2) for e in range(4)] == [1.0, 0.5, 0.0, 0.0]
    assert [l1_weight(1.0, e, 4, no_l1_epochs=4) for e in range(4)] == [1.0] * 4


def test_distillation_is_zero_at_the_teacher_and_softens_both() -> None:
    student = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(student, Z, temperature=2.0).sum(), student)
    close(gradient[0], [0.0, 0.0, 0.0])
    # uniform teacher: T^2 (mean of -log p - ln 3) at logits (2, 1, 0)
    close(distillation(2 * Z, torch.zeros(1, 3), temperature=2.0), [4 * (1.407605964 - math.log(3))])


@pytest.mark.parametrize(("forget", "dampening", "factor"), [(20.0, 1.0, 0.05), (8.0, 1.0, 1.0), (20.0, 30.0, 1.0)])
def test_synaptic_dampening(forget: float, dampening: float, factor: float) -> None:
    close(synaptic_dampening(torch.tensor([1.0]), torch.tensor([forget]), dampening=dampening), [factor])


def test_what_no_row_needs_is_left_alone() -> None:
    close(synaptic_dampening(torch.zeros(1), torch.zeros(1)), [1.0])
