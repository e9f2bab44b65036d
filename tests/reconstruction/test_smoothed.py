"""Smoothed reconstructions against their definitions."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import GaussianSmoother, MoDL, Smoothing, WeightEncoder, reconstruct
from lightning_unlearn.functional.reconstruction.data_consistency import data_consistency
from lightning_unlearn.reconstruction import modl as modl_file
from lightning_unlearn.reconstruction.unrolled import UnrolledNetwork
from tests.reconstruction.tiny import batch, ista_net, modl, operator

SMOOTHED = ["rs_e2e", "rs_e2e_image", "smug", "smug_v0", "weighted_smug"]
NETWORKS = {"MoDL": modl, "ISTANet": ista_net}


def smoothed(mode: Any, sigma: float = 0.05, samples: int = 4, weighting: Any = None, **options: Any) -> Smoothing:
    if mode == "weighted_smug" and weighting is None:
        weighting = WeightEncoder(channels=4, depth=2)
    own = {name: options.pop(name) for name in ("shared_noise", "clamp") if name in options}
    return Smoothing(mode, GaussianSmoother(sigma, samples, **options), weighting, **own)


def images(network: UnrolledNetwork, smoothing: Smoothing, scan: dict[str, Tensor] | None = None, **key: Any) -> Tensor:
    scan = batch() if scan is None else scan
    return reconstruct(network, operator(scan), scan["kspace"], smoothing, **key).image


def plain(network: UnrolledNetwork) -> Tensor:
    return network(operator(batch()), batch()["kspace"]).image


@pytest.mark.parametrize("mode", ["vanilla", *SMOOTHED])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_noise_each_is_the_network_itself(name: str, mode: str) -> None:
    network = NETWORKS[name]()
    torch.testing.assert_close(images(network, smoothed(mode, sigma=0)), plain(network), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", SMOOTHED)
@pytest.mark.parametrize("name", NETWORKS)
def test_with_noise_none_is(name: str, mode: str) -> None:
    network = NETWORKS[name]()
    assert (images(network, smoothed(mode)) - plain(network)).abs().max() > 1e-4


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_smoothing_a_linear_denoiser_with_antithetic_noise_changes_nothing(sigma: float) -> None:
    network = MoDL(Linear(), steps=4)
    for mode in ("smug", "smug_v0", "rs_e2e", "rs_e2e_image"):
        found = images(network, smoothed(mode, sigma, antithetic=True))
        torch.testing.assert_close(found, plain(network), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared_noise", [False, True])
def test_averaging_steps_is_averaging_the_denoiser_since_data_consistency_is_affine(shared_noise: bool) -> None:
    network = modl(steps=5)
    one, two = (images(network, smoothed(mode, 0.1, shared_noise=shared_noise)) for mode in ("smug", "smug_v0"))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)  # ten times the tolerance of the solver


class Constant(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.full((len(image),), 0.3)


def test_equal_weights_make_it_the_plain_mean() -> None:
    network = modl()
    found = images(network, smoothed("weighted_smug", weighting=Constant()))
    torch.testing.assert_close(found, images(network, smoothed("smug")), atol=1e-6, rtol=0)


def test_a_weighted_mean_lies_between_its_samples() -> None:
    rows, seen = batch(), []
    with mock.patch.object(MoDL, "update", lambda self, op, z, denoised, n: seen.append(denoised) or denoised):
        found = reconstruct(modl(), operator(rows), rows["kspace"], smoothed("weighted_smug", 0.3))
    for mean, samples in zip(seen, found.samples, strict=True):
        mean, samples = torch.view_as_real(mean), torch.view_as_real(samples)
        assert (mean >= samples.amin(0) - 1e-6).all()
        assert (mean <= samples.amax(0) + 1e-6).all()
    weights = WeightEncoder()(torch.randn(5, 2, 8, 8))
    assert weights.shape == (5,)
    assert ((weights > 0) & (weights < 1)).all()


def test_smug_is_its_formula_written_out() -> None:
    rows, network, smoother = batch(), modl(), GaussianSmoother(0.1, 3, seed=5)
    op = operator(rows)
    image = start = op.A_adjoint(rows["kspace"])
    for step in range(3):
        noise = smoother.noise(image, (7, step), torch.tensor([10, 11]))
        mean = torch.stack([network.denoise(image + one, step) for one in noise]).mean(0)
        image = network.update(op, start, mean, step)
    found = reconstruct(network, op, rows["kspace"], Smoothing("smug", smoother), key=(7,), rows=torch.tensor([10, 11]))
    torch.testing.assert_close(found.image, image, atol=1e-6, rtol=0)


def test_smoothing_end_to_end_is_the_mean_over_noise_on_the_measured_columns() -> None:
    rows, network, smoother = batch(), modl(), GaussianSmoother(0.1, 3)
    op = operator(rows)
    noise = smoother.noise(rows["kspace"], (0,)) * rows["mask"]
    whole = torch.stack([network(op, rows["kspace"] + one).image for one in noise]).mean(0)
    torch.testing.assert_close(images(network, Smoothing("rs_e2e", smoother)), whole, atol=1e-6, rtol=0)


def test_shared_noise_is_that_of_all_steps_and_its_own_in_each_training_step() -> None:
    seen: list[Tensor] = []
    identity = MoDL(nn.Identity(), steps=3)
    rows = batch()
    for shared in (False, True):
        for key in ((0,), (1,)):
            found = reconstruct(
                identity, operator(rows), rows["kspace"], smoothed("smug", shared_noise=shared), key=key
            )
            seen.append(torch.stack([s - x for s, x in zip(found.samples, found.states, strict=True)]))
    for noise in seen[:2]:
        assert (noise[0] - noise[1]).abs().max() > 0.01
    for noise in seen[2:]:
        torch.testing.assert_close(noise[0], noise[2], atol=1e-6, rtol=0)
    assert (seen[2] - seen[3]).abs().max() > 0.01


def test_a_clamp_limits_what_the_denoiser_is_given() -> None:
    network, seen = MoDL(nn.Identity(), steps=2), []
    network.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max().item()))
    images(network, smoothed("smug", 0.5, clamp=0.25))
    assert seen == [0.25, 0.25]


@pytest.mark.parametrize("mode", SMOOTHED)
def test_a_row_has_the_same_noise_in_any_batch(mode: str) -> None:
    rows = batch(3)
    weighting = WeightEncoder(norm="group") if mode == "weighted_smug" else None
    smoothing = smoothed(mode, weighting=weighting)
    together = images(modl(), smoothing, rows, rows=rows["index"])
    last = {name: value[2:] for name, value in rows.items()}
    torch.testing.assert_close(images(modl(), smoothing, last, rows=last["index"]), together[2:], atol=1e-5, rtol=0)


COSTS = {
    # passes of the denoiser and solves for each image, of N = 3 steps and M = 4 samples
    "vanilla": (3, 3),
    "smug": (12, 3),
    "weighted_smug": (12, 3),
    "rs_e2e": (12, 12),
    "rs_e2e_image": (12, 12),
    "smug_v0": (12, 12),
}


@pytest.mark.parametrize("mode", COSTS)
def test_the_cost_of_a_reconstruction(mode: str) -> None:
    network, rows, passes, batches, solves = modl(), batch(2), [], [], []
    network.denoiser.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    network.denoiser.register_forward_pre_hook(lambda *_: batches.append(1))

    def counted(normal: Any, z: Tensor, denoised: Tensor, *options: Any) -> Tensor:
        solves.append(len(denoised))
        return data_consistency(normal, z, denoised, *options)

    with mock.patch.object(modl_file, "data_consistency", counted):
        images(network, smoothed(mode), rows)
    assert (sum(passes) / 2, sum(solves) / 2) == COSTS[mode]
    assert len(batches) == 3  # all samples of a step go through the denoiser together


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("mode", ["vanilla", *SMOOTHED])
def test_other_numbers_of_steps(mode: str, steps: int) -> None:
    rows = batch()
    smoothing = smoothed(mode, sigma=0)
    expected = modl(steps=steps)(operator(rows), rows["kspace"]).image
    torch.testing.assert_close(images(modl(), smoothing, rows, steps=steps), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", SMOOTHED)
def test_checkpointed_activations_have_the_same_gradients(mode: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = modl(checkpointing=checkpointing)
        torch.manual_seed(0)
        rows, smoothing = batch(), smoothed(mode)
        found = reconstruct(network, operator(rows), rows["kspace"], smoothing)
        loss = found.image.abs().square().sum() + sum(s.abs().square().sum() for s in found.samples)
        loss.backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_what_a_mode_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match="smoother=GaussianSmoother"):
        Smoothing("smug")
    with pytest.raises(ValueError, match="WeightEncoder"):
        Smoothing("weighted_smug", GaussianSmoother(0.1))
    with pytest.raises(ValueError, match="weighting is of"):
        Smoothing("smug", GaussianSmoother(0.1), WeightEncoder())
    with pytest.raises(ValueError, match="'rs_e2e'"):
        Smoothing("rs", GaussianSmoother(0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 groups"):
        WeightEncoder(channels=6, norm="group")


def test_the_mean_of_a_square_and_of_a_magnitude() -> None:
    smoother = GaussianSmoother(0.1, 200_000)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    # Var((1 + s e)^2) = 4 s^2 + 2 s^4, Var(|s e|) = s^2 (1 - 2 / pi)
    error = (4 * 0.1**2 + 2 * 0.1**4) ** 0.5 / 200_000**0.5
    assert smoother(torch.square, one).item() == pytest.approx(1.01, abs=3 * error)
    error = 0.1 * (1 - 2 / torch.pi) ** 0.5 / 200_000**0.5
    assert smoother(torch.abs, zero).item() == pytest.approx(0.1 * (2 / torch.pi) ** 0.5, abs=3 * error)
