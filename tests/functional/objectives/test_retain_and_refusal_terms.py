"""Generic predictions, task vectors, the norm of adaptive RMU, and ascent with a divergence on the forget rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.kl import kl_divergence
from lightning_unlearn.functional.language.rmu import mean_norm
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels, whp_logits
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.functional.objectives.gradient_ascent import gradient_ascent
from lightning_unlearn.functional.objectives.task_vector import negate_task_vector

Z = torch.tensor([[2.0, 1.0, 0.0]])


def test_generic_logits_take_down_only_what_rose() -> None:
    reinforced = torch.tensor([[2.5, 0.0, 0.25]])
    torch.testing.assert_close(whp_logits(Z, reinforced, alpha=5.0), torch.tensor([[-0.5, 1.0, -1.25]]))
    torch.testing.assert_close(whp_logits(Z, reinforced, alpha=1.0), torch.tensor([[1.5, 1.0, -0.25]]))
    assert torch.equal(whp_logits(Z, Z - 1, alpha=5.0), Z)
    assert whp_logits(Z.bfloat16(), reinforced.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("rise", "alpha", "label"), [(0.5, 5.0, 1), (0.5, 1.0, 0), (0.0, 5.0, 0), (0.3, 5.0, 1)])
def test_the_generic_label_is_the_token_that_is_left(rise: float, alpha: float, label: int) -> None:
    reinforced = Z + torch.tensor([[rise, 0.0, 0.0]])  # 2 - alpha * rise against 1
    assert whp_labels(Z, reinforced, alpha=alpha).tolist() == [label]


def test_a_task_vector_is_negated() -> None:
    start = {"w": torch.tensor([1.0, 2.0, -1.0]), "steps": torch.tensor(3)}
    finetuned = {"w": torch.tensor([1.5, 2.0, -3.0]), "steps": torch.tensor(9)}
    half = negate_task_vector(start, finetuned, alpha=0.5)
    assert torch.equal(half["w"], torch.tensor([0.75, 2.0, 0.0]))
    assert half["steps"] == 3
    assert torch.equal(negate_task_vector(start, finetuned)["w"], torch.tensor([0.5, 2.0, 1.0]))
    assert torch.equal(start["w"], torch.tensor([1.0, 2.0, -1.0]))


def test_a_weight_that_did_not_move_stays_bit_identical_and_rounding_comes_last() -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(negate_task_vector({"w": weight}, {"w": weight}, alpha=3.7)["w"], weight)
    # 1/256 from 1 upwards is half a step of bf16, but a whole one downwards.
    edited = negate_task_vector({"w": torch.tensor([1.0]).bfloat16()}, {"w": torch.tensor([1.0078125]).bfloat16()})
    assert edited["w"].dtype == torch.bfloat16
    assert edited["w"].item() == 0.9921875


def test_a_task_vector_needs_the_same_names() -> None:
    with pytest.raises(ValueError, match="1 names are in one of the two only, such as 'b'"):
        negate_task_vector({"a": Z}, {"a": Z, "b": Z})


def test_the_mean_norm_is_over_tokens_that_count() -> None:
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 2.0], [9.0, 9.0]]])
    assert mean_norm(hidden, torch.tensor([[1, 1], [1, 0]])).tolist() == [3.0, 2.0]
    assert mean_norm(hidden, torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def forget_kl(logits: Tensor, reference: Tensor, kappa: float) -> Tensor:
    return gradient_ascent(token_nll(logits, torch.tensor([0]))) + kappa * kl_divergence(logits, reference)


def test_ascent_with_a_divergence_on_the_forget_rows() -> None:
    logits, uniform = Z.clone().requires_grad_(), torch.zeros(1, 3)
    loss = forget_kl(logits, uniform, kappa=1.0)
    # z_y - mean(z) - ln 3: linear in the logits, so that the gradient onehot(y) - p_ref is everywhere the same
    torch.testing.assert_close(loss, torch.tensor([1 - math.log(3)]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[2 / 3, -1 / 3, -1 / 3]]))


def test_with_more_divergence_there_is_a_floor() -> None:
    p_ref = torch.tensor([[0.6, 0.3, 0.1]])
    floor = (2 * p_ref - torch.tensor([[1.0, 0.0, 0.0]])).log().requires_grad_()  # p = (0.2, 0.6, 0.2)
    forget_kl(floor, p_ref.log(), kappa=2.0).sum().backward()
    assert floor.grad is not None
    assert floor.grad.abs().max() < 1e-6
