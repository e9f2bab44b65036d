"""Facts about the attack with soft tokens, on losses whose gradients are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.diffusion.soft_prompt_attack import project, soft_prompt_attack


def quadratic(delta: Tensor, step: int) -> Tensor:
    """Gradient 2 (delta - 3)."""
    return (delta - 3).square().flatten(1).sum(1)


ZERO = torch.zeros(1, 1, 2)


def test_no_step_is_the_initial_tokens() -> None:
    assert torch.equal(soft_prompt_attack(quadratic, ZERO, 0, 0.1), ZERO)


@pytest.mark.parametrize(
    ("rule", "size", "moved"),
    [("adam", 0.1, 0.1), ("sign", 0.1, 0.1), ("normalized", 0.1, 0.1 / 2**0.5)],
)
def test_one_step_moves_the_tokens(rule: Any, size: float, moved: float) -> None:
    torch.testing.assert_close(soft_prompt_attack(quadratic, ZERO, 1, size, rule), torch.full((1, 1, 2), moved))


def test_gradients_do_not_accumulate() -> None:
    """Step 0 pulls to 3, step 1 to -3 with a third of the strength: a sum of both would still point to 3."""

    def loss(delta: Tensor, step: int) -> Tensor:
        return (delta * (-3.0 if step == 0 else 1.0)).sum()

    assert soft_prompt_attack(loss, ZERO, 2, 0.1, "sign").tolist() == [[[0.0, 0.0]]]
    assert soft_prompt_attack(loss, ZERO, 2, 0.1, "normalized").abs().max() < 1e-7


def test_adam_is_torchs_with_its_gradients_cleared() -> None:
    tokens = torch.tensor([[[0.5, -2.0], [4.0, 0.0]]])

    def loss(delta: Tensor, step: int) -> Tensor:
        return ((delta - step) ** 4).sum()

    parameter = tokens.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.05)
    for step in range(7):
        optimizer.zero_grad()
        loss(parameter, step).backward()
        optimizer.step()
    torch.testing.assert_close(soft_prompt_attack(loss, tokens, 7, 0.05), parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["adam", "sign", "normalized"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_around_the_initial_tokens_holds(rule: Any, norm: Any) -> None:
    start = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    found = soft_prompt_attack(quadratic, start, 20, 0.1, rule, radius=0.25, norm=norm)
    moved = (found - start).flatten(1)
    size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    torch.testing.assert_close(size, torch.full((3,), 0.25), rtol=1e-5, atol=1e-6)


def test_signed_steps_go_no_further_than_their_number() -> None:
    """min(radius, K alpha)."""
    start = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(0))
    for steps, reach in ((2, 0.04), (30, 0.1)):
        found = soft_prompt_attack(quadratic, start, steps, 0.02, "sign", radius=0.1)
        torch.testing.assert_close((found - start).abs().max(), torch.tensor(reach), rtol=1e-5, atol=1e-6)
        assert (quadratic(found, 0) < quadratic(start, 0)).all()


def test_projection_is_the_nearest_point() -> None:
    far, center = torch.tensor([[4.0, 5.0], [1.0, 1.1]]), torch.ones(2, 2)
    torch.testing.assert_close(project(far, center, 1.0, "l2"), torch.tensor([[1.6, 1.8], [1.0, 1.1]]))
    torch.testing.assert_close(project(far, center, 1.0, "linf"), torch.tensor([[2.0, 2.0], [1.0, 1.1]]))
    assert torch.equal(project(center, center, 0.0, "l2"), center)


@pytest.mark.parametrize("rule", ["adam", "sign", "normalized"])
def test_rows_do_not_know_of_each_other(rule: Any) -> None:
    start = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    options: Any = {"rule": rule, "radius": 0.3, "norm": "l2", "probe": lambda delta: quadratic(delta, 0)}
    together = soft_prompt_attack(quadratic, start, 6, 0.1, **options)
    for row in range(3):
        assert torch.equal(
            together[row : row + 1], soft_prompt_attack(quadratic, start[row : row + 1], 6, 0.1, **options)
        )


def test_a_probe_keeps_the_best_of_each_row() -> None:
    """Signed steps of 2 towards 3: from 0 by 2, 4 and 2 again; from 1 to it; from 3.5 to 1.5 and back."""
    start = torch.tensor([[[0.0]], [[1.0]], [[3.5]]])
    last = soft_prompt_attack(quadratic, start, 2, 2.0, "sign")
    assert last.flatten().tolist() == [4.0, 3.0, 3.5]
    best = soft_prompt_attack(quadratic, start, 3, 2.0, "sign", probe=lambda delta: quadratic(delta, 0))
    assert best.flatten().tolist() == [2.0, 3.0, 3.5]
    assert soft_prompt_attack(quadratic, start, 3, 2.0, "sign").flatten().tolist() == [2.0, 3.0, 1.5]


def test_nothing_else_gets_a_gradient_and_nothing_is_drawn() -> None:
    layer, start = torch.nn.Linear(2, 2), torch.randn(1, 1, 2)
    state = torch.get_rng_state()
    found = soft_prompt_attack(lambda delta, step: layer(delta).square().sum(), start, 3, 0.1)
    assert layer.weight.grad is None
    assert not found.requires_grad
    assert torch.equal(state, torch.get_rng_state())


def test_it_runs_where_gradients_are_off() -> None:
    expected = soft_prompt_attack(quadratic, ZERO, 2, 0.1)
    with torch.no_grad():
        assert torch.equal(soft_prompt_attack(quadratic, ZERO, 2, 0.1), expected)
    with torch.inference_mode():
        assert torch.equal(soft_prompt_attack(quadratic, torch.zeros(1, 1, 2), 2, 0.1), expected)


def test_what_makes_no_sense_is_refused() -> None:
    for options, match in (
        ({"steps": -1}, "at least 0, but got -1"),
        ({"step_size": 0.0}, "positive, but got 0.0"),
        ({"rule": "pgd"}, "'pgd'"),
        ({"radius": -1.0}, "radius.*-1.0"),
        ({"norm": "l1"}, "'l1'"),
    ):
        with pytest.raises(ValueError, match=match):
            soft_prompt_attack(quadratic, ZERO, **({"steps": 1, "step_size": 0.1} | options))
    with pytest.raises(ValueError, match="does not depend on the soft tokens"):
        soft_prompt_attack(lambda delta, step: torch.ones(()), ZERO, 1, 0.1)
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on the soft tokens"):
        soft_prompt_attack(lambda delta, step: other.sum(), ZERO, 1, 0.1)
