"""Facts about the mathematics of concept erasure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.diffusion.ddim import (
    add_noise,
    ddim_step,
    ddim_timesteps,
    ldm_timesteps,
    prediction_target,
)
from lightning_unlearn.functional.diffusion.esd import esd_target
from lightning_unlearn.functional.diffusion.guidance import classifier_free_guidance
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.diffusion.rece import closed_form_attack
from lightning_unlearn.functional.diffusion.uce import uce, uce_map


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


E_0, E_P = normal(2, 4, 8, 8, seed=1), normal(2, 4, 8, 8, seed=2)


def test_esd_without_negative_guidance_aims_at_the_empty_prompt() -> None:
    assert torch.equal(esd_target(E_0, E_P, eta=0.0), E_0)


def test_esd_is_guidance_with_a_negative_weight() -> None:
    torch.testing.assert_close(esd_target(E_0, E_P, eta=1.5), classifier_free_guidance(E_0, E_P, -1.5))


def test_the_newer_code_of_esd_has_the_same_target_at_an_eta_larger_by_one() -> None:
    torch.testing.assert_close(esd_target(E_0, E_P, base=E_P, eta=2.0), esd_target(E_0, E_P, eta=1.0))


def test_esd_starts_at_one_plus_eta_squared_times_the_distance() -> None:
    start = (E_P - esd_target(E_0, E_P, eta=1.0)).square().mean()
    torch.testing.assert_close(start, 4 * (E_P - E_0).square().mean())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_steps_are_those_of_diffusers(prediction: Any) -> None:
    from diffusers import DDIMScheduler

    sd: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    sd |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction}
    scheduler = DDIMScheduler(**sd)
    scheduler.set_timesteps(50)
    levels, timesteps = scheduler.alphas_cumprod, ddim_timesteps(50)
    assert torch.equal(timesteps, scheduler.timesteps)
    z, output = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=3)
    for i in (0, 20, 49):
        after = levels[timesteps[i + 1]] if i < 49 else levels[0]
        expected = scheduler.step(output, timesteps[i], z).prev_sample
        torch.testing.assert_close(ddim_step(z, output, levels[timesteps[i]], after, prediction), expected)
    t = torch.tensor([5, 900])
    torch.testing.assert_close(add_noise(z, output, levels[t]), scheduler.add_noise(z, output, t))
    velocity = prediction_target(z, output, levels[t], "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(z, output, t))


def test_the_authors_latents_are_two_steps_cleaner_than_their_timestep() -> None:
    timesteps = ddim_timesteps(50)
    for index in range(2, 50):
        run, low, high = ldm_timesteps(index, 50)
        level = timesteps[run] if run < 50 else torch.tensor(0)  # what the next step would be called with
        assert 20 <= low - level <= 40
        assert high - low == 20
    assert [ldm_timesteps(k, 50)[0] for k in (0, 1, 2, 49)] == [50, 50, 49, 2]


def test_noise_of_a_row_is_its_own() -> None:
    assert torch.equal(row_noise((3,), [0, 1, 2, 3], 7)[[1, 3]], row_noise((3,), [1, 3], 7))
    assert not torch.equal(row_noise((3,), [0], 7), row_noise((3,), [0], 8))


def problem(edits: int = 1, keeps: int = 3) -> dict[str, Tensor]:
    return {
        "weight": normal(16, 12, seed=1).double(),
        "concepts": normal(edits, 12, seed=2).double(),
        "guides": normal(edits, 12, seed=3).double(),
        "preserve": normal(keeps, 12, seed=4).double(),
    }


def objective(new: Tensor, p: dict[str, Tensor], lamb: float) -> float:
    w, c, g, k = p["weight"], p["concepts"], p["guides"], p["preserve"]
    terms = (c @ new.mT - g @ w.mT, k @ new.mT - k @ w.mT, lamb**0.5 * (new - w))
    return sum(term.square().sum().item() for term in terms)


def test_uce_solves_its_normal_equations() -> None:
    p = problem(edits=2)
    new = uce(**p, lamb=0.5)
    w, c, g, k = p["weight"], p["concepts"], p["guides"], p["preserve"]
    a = c.mT @ c + k.mT @ k + 0.5 * torch.eye(12, dtype=torch.float64)
    b = w @ (g.mT @ c + k.mT @ k + 0.5 * torch.eye(12, dtype=torch.float64))
    assert (new @ a - b).abs().max() < 1e-12
    assert objective(new, p, 0.5) < objective(w, p, 0.5)
    nudged = new + 1e-3 * normal(16, 12, seed=5).double()
    assert objective(new, p, 0.5) < objective(nudged, p, 0.5)


def test_the_rank_of_a_uce_edit_is_the_number_of_concepts() -> None:
    for edits in (1, 3):
        p = problem(edits)
        assert torch.linalg.matrix_rank(uce(**p) - p["weight"], rtol=1e-8) == edits


def test_uce_keeps_what_it_is_told_to() -> None:
    p = problem()

    def drift(**scales: float) -> float:
        new = uce(**p, **scales)
        return ((p["preserve"] @ (new - p["weight"]).mT).norm() / (p["preserve"] @ p["weight"].mT).norm()).item()

    assert drift(preserve_scale=1e8) < 1e-6 < drift(preserve_scale=1.0) < drift(preserve_scale=0.0)
    orthogonal = (
        p["preserve"][0] - p["concepts"][0] * (p["preserve"][0] @ p["concepts"][0]) / p["concepts"].square().sum()
    )
    change = uce_map(p["concepts"], p["guides"], lamb=0.5)
    assert (change @ orthogonal).abs().max() < 1e-12


def test_uce_without_edits_or_under_a_heavy_tie_leaves_the_weights() -> None:
    p = problem()
    assert torch.equal(uce(**(p | {"concepts": torch.zeros(0, 12), "guides": torch.zeros(0, 12)})), p["weight"])
    assert torch.equal(uce(**(p | {"guides": p["concepts"]})), p["weight"])
    torch.testing.assert_close(uce(**p, lamb=1e12), p["weight"])


def test_uce_does_not_mind_the_order_but_does_mind_a_second_time() -> None:
    p = problem(edits=3)
    turned = p | {name: p[name].flip(0) for name in ("concepts", "guides", "preserve")}
    torch.testing.assert_close(uce(**turned), uce(**p))
    once = uce(**p)
    values = p["guides"] @ p["weight"].mT
    errors = [(p["concepts"] @ w.mT - values).norm() for w in (p["weight"], once)]
    assert errors[1] < errors[0]
    assert not torch.allclose(uce(**(p | {"weight": once})), once)


def test_uce_needs_a_tie() -> None:
    with pytest.raises(ValueError, match="lamb must be greater than 0"):
        uce_map(torch.ones(1, 2), torch.ones(1, 2), lamb=0.0)


def test_the_closed_form_attack_undoes_an_edit() -> None:
    p = problem()
    layers = [normal(16, 12, seed=i).double() for i in range(4)]
    edited = [uce(**(p | {"weight": w})) for w in layers]
    c = p["concepts"]
    torch.testing.assert_close(closed_form_attack(c, layers, layers, lamb=0.0), c)

    found = closed_form_attack(c, edited, layers, lamb=0.1)
    gram = sum((w.mT @ w for w in edited), 0.1 * torch.eye(12, dtype=torch.float64))
    cross = sum(w.mT @ o for w, o in zip(edited, layers, strict=True))
    torch.testing.assert_close(gram @ found.mT, cross @ c.mT)

    def misses(states: Tensor) -> float:
        return sum((states @ w.mT - c @ o.mT).square().sum().item() for w, o in zip(edited, layers, strict=True))

    assert misses(found) < misses(c)
