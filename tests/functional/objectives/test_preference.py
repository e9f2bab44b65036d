"""Numbers of the losses that compare two answers, on sequences A (2 tokens) and B (1 token) of known probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.objectives.dpo import dpo
from lightning_unlearn.functional.objectives.kto import kto
from lightning_unlearn.functional.objectives.npo import npo
from tests.functional.objectives.test_objectives import LN2, NLL, REFERENCE, close, gradient

CHOSEN = torch.full((2,), 4 * LN2, dtype=torch.float64)  # p = 1/16 in all
CHOSEN_REFERENCE = torch.full((2,), 6 * LN2, dtype=torch.float64)


def test_dpo() -> None:
    close(dpo(CHOSEN, CHOSEN_REFERENCE, NLL, REFERENCE, beta=0.1).mean(), 11.5866667)
    # The margins are 3 ln 2 and 4 ln 2, so sigma(margin) is 8 / 9 and 16 / 17.
    expected = [-2 * math.log(8 / 9), -2 * math.log(16 / 17)]
    close(dpo(CHOSEN, CHOSEN_REFERENCE, NLL, REFERENCE, beta=1.0), expected)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_at_the_reference_pulls_one_answer_up_and_pushes_the_other_down(beta: float) -> None:
    close(dpo(CHOSEN, CHOSEN, NLL, NLL, beta=beta), [2 * LN2 / beta] * 2)
    close(gradient(lambda s: dpo(s, CHOSEN, NLL, NLL, beta=beta).sum(), CHOSEN), [1, 1], 1e-12)
    close(gradient(lambda s: dpo(CHOSEN, CHOSEN, s, NLL, beta=beta).sum(), NLL), [-1, -1], 1e-12)


def test_dpo_whose_chosen_answer_stays_is_npo() -> None:
    torch.testing.assert_close(dpo(CHOSEN, CHOSEN, NLL, REFERENCE, beta=0.3), npo(NLL, REFERENCE, beta=0.3))


def test_kto() -> None:
    # beta = 1: the odds of sigma are the ratios of the probabilities, 1/2 for A and 1/4 for B, times e^-z.
    close(kto(NLL, REFERENCE, 0.0, desirable=False, beta=1.0), [1 / 3, 1 / 5])
    close(kto(NLL, REFERENCE, LN2, desirable=False, beta=1.0), [1 / 5, 1 / 9])
    close(kto(CHOSEN, CHOSEN_REFERENCE, 0.0, desirable=True, beta=1.0), [1 / 5, 1 / 5])
    close(kto(CHOSEN, CHOSEN_REFERENCE, LN2, desirable=True, beta=1.0), [1 / 3, 1 / 3])


@pytest.mark.parametrize(("desirable", "sign"), [(True, 1), (False, -1)])
def test_kto_at_the_reference(desirable: bool, sign: int) -> None:
    close(kto(NLL, NLL, desirable=desirable, beta=0.1), [0.5, 0.5])
    found = gradient(lambda s: kto(s, NLL, desirable=desirable, beta=0.1).sum(), NLL)
    close(found, [sign * 0.1 / 4] * 2, 1e-12)


def test_ktos_reference_point_has_no_gradient() -> None:
    def loss(nll: Tensor) -> Tensor:
        return kto(NLL, REFERENCE, (REFERENCE - nll).mean(), desirable=True).sum() + 0 * nll.sum()

    close(gradient(loss, NLL), [0, 0], 0)


def test_kto_is_bounded_and_its_gradient_fades_on_both_sides() -> None:
    far = torch.tensor([-1e3, 1e3], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    for desirable in (True, False):
        assert ((kto(far, zero, desirable=desirable) >= 0) & (kto(far, zero, desirable=desirable) <= 1)).all()
        close(gradient(lambda s, d=desirable: kto(s, zero, desirable=d).sum(), far), [0, 0], 1e-12)  # type: ignore[misc]
