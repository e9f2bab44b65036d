from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_unlearn import MeasurementPGD, MultiCoilMRI
from lightning_unlearn.core.lightning import LightningModule
from tests.reconstruction.scans import NoisyMoDL, ZeroFilled, loader, scan

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x).abs()


def whole() -> dict[str, Tensor]:
    """A scan with one coil that sees all, of which all is measured: its reconstruction keeps the norm."""
    return scan(coils=1, acceleration=1)


def test_three_times_the_steps_of_a_third_of_the_radius_cross_the_ball() -> None:
    attack = MeasurementPGD(eps=0.02)
    assert attack.alpha == pytest.approx(0.006667, abs=1e-6)
    assert attack.steps * attack.alpha >= 2 * attack.eps
    assert attack.at(0.05).alpha == pytest.approx(0.05 / 3)


@pytest.mark.parametrize("domain", ["kspace", "image"])
def test_the_worst_perturbation_of_a_unitary_map_is_a_corner_of_the_cube(domain: Any) -> None:
    found = MeasurementPGD(0.02, domain=domain).attack(ZeroFilled(), whole())
    assert found.loss is not None
    assert found.loss.tolist() == pytest.approx([0.02**2] * 3, rel=1e-4)
    assert parts(found.perturbation).min().item() == pytest.approx(0.02, rel=1e-5)


@pytest.mark.parametrize("domain", ["kspace", "image"])
def test_the_worst_perturbation_in_a_sphere_has_its_radius(domain: Any) -> None:
    batch = whole()
    found = MeasurementPGD(0.1, norm="l2", domain=domain).attack(ZeroFilled(), batch)
    norms = found.perturbation.flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx((0.1 * batch["kspace"].flatten(1).norm(dim=1)).tolist(), rel=1e-5)
    assert found.loss is not None
    assert found.loss.tolist() == pytest.approx((norms**2 / (2 * 16 * 16)).tolist(), rel=1e-4)


@pytest.mark.parametrize("surrogate", ["smoothed", "base", "adaptive"])
def test_a_perturbation_is_small_on_sampled_columns_and_makes_the_error_larger(surrogate: Any) -> None:
    batch, module = scan(), NoisyMoDL()
    found = MeasurementPGD(0.05, surrogate=surrogate, steps=5).attack(module, batch)
    assert found.loss is not None
    assert found.clean_loss is not None
    assert parts(found.perturbation).max() <= 0.05 * (1 + 1e-6)
    assert (found.perturbation.abs() * ~batch["mask"]).max() == 0
    assert (found.loss >= found.clean_loss).all()
    assert found.loss.mean() > 1.05 * found.clean_loss.mean()
    assert torch.equal(found.batch["kspace"], batch["kspace"] + found.perturbation)
    assert all(found.batch[name] is not None for name in batch)


def test_ascent_beats_noise_of_the_same_size() -> None:
    batch, module = scan(), NoisyMoDL(sigma=0.0)
    found = MeasurementPGD(0.05).attack(module, batch)
    sign = torch.randn(batch["kspace"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.complex64)
    corner = torch.view_as_complex(0.05 * torch.view_as_real(sign).sign()) * batch["mask"]
    with torch.no_grad():
        module.eval()
        noisy = parts(module.reconstruct({**batch, "kspace": batch["kspace"] + corner}) - batch["target"])
    assert found.loss is not None
    assert found.loss.mean() > noisy.square().mean()


def test_no_radius_is_no_perturbation() -> None:
    batch = scan()
    found = MeasurementPGD(0).attack(NoisyMoDL(), batch)
    assert torch.equal(found.batch["kspace"], batch["kspace"])
    assert not found.perturbation.any()
    assert found.loss is found.clean_loss is not None
    last = MeasurementPGD(0, keep="last").attack(NoisyMoDL(), batch)
    assert torch.equal(last.batch["kspace"], batch["kspace"])


def test_a_module_that_draws_noise_is_attacked_the_same_each_time() -> None:
    found, again = (MeasurementPGD(0.05, steps=2).attack(NoisyMoDL(), scan()) for _ in range(2))
    assert torch.equal(found.perturbation, again.perturbation)
    assert torch.equal(found.loss, again.loss)  # type: ignore[arg-type]
    assert not found.perturbation.requires_grad


@pytest.mark.parametrize("keep", ["worst", "last"])
def test_the_module_and_the_random_numbers_stay_as_they_were(keep: Any) -> None:
    module, batch = NoisyMoDL(), scan()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    module.network.denoiser.out.bias.requires_grad_(False)  # type: ignore[union-attr, operator]
    module.train()
    module.network.denoiser.body[2].eval()  # type: ignore[index, union-attr, operator]
    before, flags = deepcopy(module.state_dict()), [p.requires_grad for p in module.parameters()]
    modes, given = [m.training for m in module.modules()], {name: x.clone() for name, x in batch.items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    MeasurementPGD(0.05, steps=2, keep=keep).attack(module, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert all((p.grad == 7).all() for p in module.parameters())  # type: ignore[union-attr]
    assert [p.requires_grad for p in module.parameters()] == flags
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(x, given[name]) for name, x in batch.items())


def test_a_perturbation_is_a_function_of_the_seed_and_the_image() -> None:
    batch, module = scan(4), ZeroFilled()
    attack = MeasurementPGD(0.05, steps=1)
    found = attack.attack(module, batch).perturbation
    torch.rand(5)
    assert torch.equal(found, attack.attack(module, batch).perturbation)
    alone = attack.attack(module, {name: x[2:3] for name, x in batch.items()}).perturbation
    torch.testing.assert_close(alone[0], found[2])
    assert not torch.equal(found, MeasurementPGD(0.05, steps=1, seed=1).attack(module, batch).perturbation)
    assert not torch.equal(found, attack.attack(module, batch, key=(5,)).perturbation)


def test_more_tries_are_never_weaker() -> None:
    batch, module = scan(), NoisyMoDL(sigma=0.0)

    def loss(**settings: Any) -> Tensor:
        found = MeasurementPGD(0.05, steps=3, **settings).attack(module, batch)
        assert found.loss is not None
        return found.loss

    once, base = loss(), loss(surrogate="base")
    assert (loss(restarts=3) >= once).all()
    assert torch.equal(loss(surrogate="adaptive"), torch.maximum(once, base))


def test_it_works_in_the_inference_mode_of_a_trainer() -> None:
    losses = []

    class Attacked(NoisyMoDL):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            assert torch.is_inference_mode_enabled()
            found = MeasurementPGD(0.05, steps=2).attack(self, batch)
            assert found.loss is not None
            assert found.clean_loss is not None
            losses.append((found.loss > found.clean_loss).all())
            assert not found.perturbation.is_inference()
            self.reconstruct(found.batch)

    Trainer(**QUIET).test(Attacked(), loader(scan(4)), verbose=False)
    assert losses == [True, True]


def test_a_network_that_diverges_is_the_worst() -> None:
    class Fragile(ZeroFilled):
        def reconstruct(self, batch: Any) -> Tensor:
            image = super().reconstruct(batch)
            far = (image - batch["target"]).abs().amax((1, 2), keepdim=True) > 0.03
            return torch.where(far, torch.nan, image)

    found = MeasurementPGD(0.05).attack(Fragile(), whole())
    assert found.loss is not None
    assert found.loss.isinf().all()
    assert found.perturbation.abs().isfinite().all()


def test_an_operator_of_the_modules_own_is_attacked() -> None:
    class Half(ZeroFilled):
        def operator(self, batch: Any) -> Any:
            return MultiCoilMRI(batch["maps"] / 2, batch["mask"])

    found = MeasurementPGD(0.02, domain="image").attack(Half(), whole())
    added = found.batch["kspace"] - whole()["kspace"]
    assert added.norm().item() == pytest.approx(found.perturbation.norm().item() / 2, rel=1e-3)


def test_the_users_base_is_attacked_in_place_of_a_mode() -> None:
    def base(module: Any, batch: Any) -> Tensor:
        calls.append(batch["kspace"].shape)
        return module.reconstruct(batch)

    calls: list[Any] = []
    MeasurementPGD(0.02, steps=2, surrogate="base", base=base).attack(ZeroFilled(), scan())
    assert len(calls) == 2


def test_what_a_module_lacks_is_named() -> None:
    class Plain(LightningModule):
        pass

    with pytest.raises(TypeError, match=r"Plain has no method reconstruct\(batch\)"):
        MeasurementPGD().attack(Plain(), scan())
    with pytest.raises(TypeError, match="takes no mode="):
        MeasurementPGD(surrogate="adaptive").attack(ZeroFilled(), scan())


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"eps": -0.1}, "eps"),
        ({"alpha": 0.0}, "alpha"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"domain": "object"}, "domain"),
        ({"surrogate": "both"}, "surrogate"),
        ({"norm": "l1"}, "norm"),
        ({"keep": "last", "restarts": 2}, "keep='last'"),
        ({"keep": "last", "surrogate": "adaptive"}, "keep='last'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        MeasurementPGD(**settings)
