"""Numbers worked out by hand: three tokens of p = 1/2, 1/4, 1/8, and one position with logits (2, 1, 0)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.objectives.ceu import ceu
from lightning_unlearn.functional.objectives.gradient_ascent import gradient_ascent
from lightning_unlearn.functional.objectives.pdu import pdu
from lightning_unlearn.functional.objectives.satimp import satimp
from lightning_unlearn.functional.objectives.undial import undial
from lightning_unlearn.functional.objectives.wga import wga
from tests.functional.objectives.test_objectives import close, gradient

LN2 = math.log(2)
TOKENS = torch.tensor([LN2, 2 * LN2, 3 * LN2], dtype=torch.float64)
Z = torch.tensor([[2.0, 1.0, 0.0]])
P = [0.6652410, 0.2447285, 0.0900306]
LABEL = torch.tensor([0])


def test_wga() -> None:
    close(wga(TOKENS).mean(), -11 / 24 * LN2)
    close(wga(TOKENS).mean(), -0.3176925)


def test_wga_gradient_is_the_confidence_times_ascent() -> None:
    close(gradient(lambda nll: wga(nll, beta=2.0).sum(), TOKENS), [-1 / 4, -1 / 16, -1 / 64])


def test_wga_at_beta_0_is_gradient_ascent() -> None:
    assert torch.equal(wga(TOKENS, beta=0.0), gradient_ascent(TOKENS))


def test_satimp() -> None:
    close(satimp(TOKENS).mean(), -0.00396710, 1e-8)


def test_satimp_gradient_is_the_weight_times_ascent() -> None:
    weights = [p**5 * (1 - p) for p in (1 / 2, 1 / 4, 1 / 8)]
    close(gradient(lambda nll: satimp(nll).sum(), TOKENS), [-w for w in weights])


def test_satimp_without_importance_is_wga() -> None:
    torch.testing.assert_close(satimp(TOKENS, beta1=2.0, beta2=0.0), wga(TOKENS, beta=2.0))


@pytest.mark.parametrize("objective", [wga, satimp])
@pytest.mark.parametrize("nll", [0.0, 1e-8, 200.0])
def test_weighted_ascent_is_finite_on_certain_and_on_impossible_tokens(
    objective: Callable[[Tensor], Tensor], nll: float
) -> None:
    token = torch.tensor([nll])
    assert objective(token).isfinite().all()
    assert gradient(lambda t: objective(t).sum(), token).isfinite().all()


def test_ceu() -> None:
    close(ceu(Z, LABEL), [1.6765474])
    close(gradient(lambda z: ceu(z, LABEL).sum(), Z), [[0.6652410, -0.4863301, -0.1789108]])  # type: ignore[list-item]


def test_ceu_is_the_loss_of_the_label_plus_the_entropy_of_the_rest() -> None:
    q = torch.tensor([1.0, 0.0]).softmax(0)
    close(ceu(Z, LABEL) + (q * q.log()).sum(), [1.0943443])
    close(ceu(Z, LABEL) + (q * q.log()).sum(), [-math.log(1 - P[0])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logits", [[300.0, 0.0, 0.0], [-300.0, 300.0, 0.0], [0.0, 1.0, -math.inf]])
def test_ceu_is_finite_and_its_gradient_bounded_however_sure_the_model_is(
    logits: list[float], dtype: torch.dtype
) -> None:
    z = torch.tensor([logits], dtype=dtype)
    value = ceu(z, LABEL)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert gradient(lambda z: ceu(z, LABEL).sum(), z).float().norm() <= math.sqrt(2) + 1e-2


@pytest.mark.parametrize(("beta", "expected"), [(10.0, 1.6764329), (1.0, 1.1406496)])
def test_undial(beta: float, expected: float) -> None:
    close(undial(Z, Z, LABEL, beta=beta), [expected])


def test_undial_gradient_is_the_prediction_less_the_target() -> None:
    target = [9.0212e-5, 0.7309926, 0.2689172]
    found = gradient(lambda z: undial(z, Z, LABEL, beta=10.0).sum(), Z)
    close(found, [[p - q for p, q in zip(P, target, strict=True)]])  # type: ignore[list-item]


def test_undial_near_beta_0_rests_at_the_reference() -> None:
    close(gradient(lambda z: undial(z, Z, LABEL, beta=0.0).sum(), Z), [[0, 0, 0]], 1e-7)  # type: ignore[list-item]
    sizes = [gradient(lambda z, b=b: undial(z, Z, LABEL, beta=b).sum(), Z).norm().item() for b in (1e-1, 1e-2, 1e-3)]  # type: ignore[misc]
    assert sizes[0] > 9 * sizes[1] > 81 * sizes[2] > 0


def test_undial_sends_no_gradient_to_the_reference() -> None:
    reference = Z.clone().requires_grad_()
    undial(Z.clone().requires_grad_(), reference, LABEL).sum().backward()
    assert reference.grad is None


def test_pdu() -> None:
    close(pdu(Z), [1.0])
    close(gradient(lambda z: pdu(z).sum(), Z), [[4 / 3, -2 / 3, -2 / 3]])  # type: ignore[list-item]


def test_pdu_is_0_where_all_logits_are_equal_and_does_not_feel_a_shift() -> None:
    close(pdu(torch.full((1, 7), 3.0)), [0.0])
    close(pdu(Z + 5), [1.0])


@pytest.mark.parametrize(
    "objective",
    [lambda z: ceu(z, LABEL), lambda z: undial(z, z.detach(), LABEL), pdu],
    ids=["ceu", "undial", "pdu"],
)
def test_bf16_logits_are_cast_up(objective: Callable[[Tensor], Tensor]) -> None:
    assert torch.equal(objective(Z.bfloat16()), objective(Z))  # (2, 1, 0) are exact in bf16
