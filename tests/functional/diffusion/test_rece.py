"""Facts about the closed-form attack of RECE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.diffusion.rece import closed_form_attack
from lightning_unlearn.functional.diffusion.uce import uce


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CONCEPTS = normal(3, 6, seed=1)
ORIGINALS = [normal(rows, 6, seed=rows) for rows in (5, 8)]
EDITED = [uce(w, CONCEPTS, normal(3, 6, seed=2), lamb=0.5) for w in ORIGINALS]


def apart(states: Tensor, weights: list[Tensor] = EDITED) -> Tensor:
    """How far the keys and values of each state are from those that the concept had."""
    pairs = zip(weights, ORIGINALS, strict=True)
    return torch.stack([(states @ w.T - CONCEPTS @ old.T).square().sum(1) for w, old in pairs]).sum(0)


def test_without_an_edit_the_concept_brings_itself_back() -> None:
    torch.testing.assert_close(closed_form_attack(CONCEPTS, ORIGINALS, ORIGINALS, lamb=0.0), CONCEPTS)


@pytest.mark.parametrize("lamb", [0.0, 0.1, 10.0])
def test_it_solves_the_normal_equations_for_each_row(lamb: float) -> None:
    found = closed_form_attack(CONCEPTS, EDITED, ORIGINALS, lamb=lamb)
    gram = lamb * torch.eye(6, dtype=torch.float64) + sum(w.T @ w for w in EDITED)
    cross = sum(w.T @ old for w, old in zip(EDITED, ORIGINALS, strict=True))
    torch.testing.assert_close(found @ gram, CONCEPTS @ cross.T)
    torch.testing.assert_close(closed_form_attack(CONCEPTS[1:2], EDITED, ORIGINALS, lamb=lamb), found[1:2])


def test_the_objective_has_its_minimum_there() -> None:
    found = closed_form_attack(CONCEPTS, EDITED, ORIGINALS, lamb=0.3).requires_grad_()
    (apart(found).sum() + 0.3 * found.square().sum()).backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, torch.zeros_like(found), atol=1e-10, rtol=0)


def test_it_comes_nearer_to_the_concept_than_the_concept_itself() -> None:
    exact = closed_form_attack(CONCEPTS, EDITED, ORIGINALS, lamb=0.0)
    assert (apart(exact) < 0.5 * apart(CONCEPTS)).all()


def test_a_larger_lamb_is_a_shorter_and_weaker_answer() -> None:
    found = [closed_form_attack(CONCEPTS, EDITED, ORIGINALS, lamb=lamb) for lamb in (0.0, 0.1, 1.0, 1e9)]
    for weak, strong in zip(found[1:], found, strict=False):
        assert (weak.norm(dim=1) < strong.norm(dim=1)).all()
        assert (apart(weak) > apart(strong)).all()
    torch.testing.assert_close(found[-1], torch.zeros_like(CONCEPTS), atol=1e-6, rtol=0)


def test_it_undoes_a_halved_layer() -> None:
    (w,) = (normal(6, 6, seed=9),)
    torch.testing.assert_close(closed_form_attack(CONCEPTS, [0.5 * w], [w], lamb=0.0), 2 * CONCEPTS)


def test_it_is_in_double_precision() -> None:
    found = closed_form_attack(CONCEPTS.float(), [w.float() for w in EDITED], [w.float() for w in ORIGINALS])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, closed_form_attack(CONCEPTS, EDITED, ORIGINALS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "originals", "options", "message"),
    [
        (EDITED, ORIGINALS, {"lamb": -0.1}, "at least 0, but got -0.1"),
        (EDITED, ORIGINALS[:1], {}, "2 weights and 1 originals"),
        ([], [], {}, "0 weights"),
        (EDITED[:1], ORIGINALS[:1], {"lamb": 0.0}, "see 5 of 6 directions"),
    ],
)
def test_what_has_no_answer_is_refused(weights: Any, originals: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        closed_form_attack(CONCEPTS, weights, originals, **options)
