"""Training, evaluation and resuming of modules that reconstruct."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import (
    ConvDenoiser,
    LitDenoiser,
    LitReconstruction,
    MeasurementPGD,
    MoDL,
    NoiseOptions,
    WeightEncoder,
)
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.functional.reconstruction import complex_mse, linear_decay, unrolled_stability
from tests.helpers import Recorder, logged, same, trainer, weights
from tests.reconstruction.tiny import batch, ista_net, loader, modl, reconstruction

MODES = ["vanilla", "rs_e2e", "rs_e2e_image", "smug", "smug_v0", "weighted_smug", "adversarial"]


def one_step(module: LitReconstruction, **options: Any) -> dict[str, float]:
    run = trainer(max_steps=1, limit_val_batches=0, **options)
    run.fit(module, loader())
    return {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_what_it_is_shown(mode: str) -> None:
    losses = logged("train/loss")
    run = trainer(losses, max_epochs=12, limit_val_batches=0, gradient_clip_val=1.0)
    run.fit(reconstruction(mode, n_samples=2), loader(2))
    assert losses.values[-1] < 0.9 * losses.values[0]


def test_the_stability_loss_of_known_errors() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.complex64)
    samples = [torch.full((3, 2, 4, 4), 0.1 + 0.1j)] * 8  # an MSE of 0.01 in each of 8 steps
    final = complex_mse(torch.full((2, 4, 4), 0.2 + 0.2j), target)
    assert final.item() == pytest.approx(0.04)
    assert (1.0 * final + unrolled_stability(samples, [target] * 8)).item() == pytest.approx(0.12)
    with pytest.raises(ValueError, match="8 steps and 7 targets"):
        unrolled_stability(samples, [target] * 7)


def test_stability_without_noise_at_the_target_is_zero() -> None:
    denoiser, target = ConvDenoiser(channels=4, depth=2), batch()["target"]
    denoised = LitDenoiser(denoiser)(target)
    assert unrolled_stability([denoised[None]], [denoised]).item() == 0
    found = one_step(reconstruction(sigma=0.0, stability_target="self"))
    assert found["train/stability"] == 0
    assert found["train/loss"] == found["train/mse"] > 0


def by_hand(module: LitReconstruction, target: str) -> Tensor:
    """The loss of a batch, step by step."""
    rows = batch()
    operator, start_weights, t = module.operator(rows), modl(), rows["target"]
    image = start = operator.A_adjoint(rows["kspace"])
    stability = torch.zeros(())
    for step in range(3):
        state = image
        noise = module.smoothing.smoother.noise(state, (0, 0, step), rows["index"])  # type: ignore[union-attr]
        samples = torch.stack([module.network.denoise(state + one, step) for one in noise])
        wanted = t
        if target in ("label_denoised", "self"):
            wanted = module.network.denoise(state if target == "self" else t, step)
        elif target == "frozen":
            wanted = start_weights.denoise(state, step).detach()
        stability = stability + complex_mse(samples, wanted)
        image = module.network.update(operator, start, samples.mean(0), step)
    return 3.0 * complex_mse(image, t) + 2.0 * stability


@pytest.mark.parametrize("target", ["label_denoised", "label", "self", "frozen"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(target: Any) -> None:
    module = reconstruction(stability_target=target, stability_weight=2.0, reconstruction_weight=3.0)
    with torch.no_grad():
        for parameter in module.network.parameters():  # elsewhere than at the frozen weights
            parameter.add_(0.05)
    expected = by_hand(module, target)
    wanted = torch.autograd.grad(expected, list(module.network.parameters()))
    losses, gradients = logged("train/loss"), []
    record = Recorder(on_after_backward=lambda _, m: gradients.extend(p.grad.clone() for p in m.network.parameters()))
    trainer(losses, record, max_steps=1, limit_val_batches=0).fit(module, loader(2, 2))
    assert losses.values[0] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradients, list(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("mode", "target"), [("rs_e2e", "label"), ("rs_e2e_image", "frozen"), ("smug_v0", "label")])
def test_stability_of_whole_reconstructions_and_of_whole_steps(mode: str, target: Any) -> None:
    found = one_step(reconstruction(mode, stability_target=target, reconstruction_weight=0.0))
    assert found["train/loss"] == found["train/stability"] > 0
    silent = one_step(reconstruction(mode, sigma=0.0, stability_target=target))
    if target == "frozen":  # the network is still what it is held to
        assert silent["train/stability"] == pytest.approx(0, abs=1e-9)


def test_the_frozen_network_stays_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    module = reconstruction(stability_target="frozen")
    before = modl()
    run = trainer(max_epochs=2, limit_val_batches=0)
    run.fit(module, loader())
    assert module.reference is not None
    assert same(module.reference, before)
    assert not same(module.network, before)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = LitReconstruction.load_from_checkpoint(tmp_path / "run.ckpt", network=MoDL(ConvDenoiser(8, 3), steps=3))
    assert again.reference is not None
    assert same(again, module)


def test_the_options_of_the_noise() -> None:
    module = reconstruction(noise=NoiseOptions(antithetic=True, shared=True, clamp=0.5, seed=3))
    smoothing = module.smoothing
    assert smoothing.smoother is not None
    assert (smoothing.smoother.antithetic, smoothing.smoother.seed) == (True, 3)
    assert (smoothing.shared_noise, smoothing.clamp) == (True, 0.5)


def test_adversarial_training_sees_the_measurements_of_the_attack() -> None:
    seen: list[Tensor] = []

    class Spy(LitReconstruction):
        def _run(self, batch: Any, *rest: Any, **options: Any) -> Any:
            seen.append(batch["kspace"].detach().clone())
            return super()._run(batch, *rest, **options)

    module = Spy(modl(), "adversarial", adversary=MeasurementPGD(eps=0.1, steps=3, keep="last"))
    module.train()
    trainer(max_steps=1, limit_val_batches=0).fit(module, loader(2, 2))
    rows = batch()
    assert len(seen) == 4  # k + 1 passes
    delta = torch.view_as_real(seen[-1] - rows["kspace"])
    assert 0.05 < delta.abs().max() <= 0.1 * (1 + 1e-6)
    assert (delta.abs().sum(-1) * ~rows["mask"]).max() == 0


def test_ista_net_trains_smoothed_with_its_symmetry_loss() -> None:
    found = one_step(LitReconstruction(ista_net(), "smug", n_samples=2))
    whole = found["train/mse"] + found["train/stability"] + 0.01 * found["train/symmetry"]
    assert found["train/symmetry"] > 0
    assert found["train/loss"] == pytest.approx(whole)


# ---- recipe ----------------------------------------------------------------------------------------------------------


def test_the_learning_rate_of_the_paper() -> None:
    of_smug = [linear_decay(epoch, 60, 20, 20) for epoch in range(60)]
    assert of_smug[:20] == [1.0] * 20
    assert [round(of_smug[e], 5) for e in (20, 59)] == [0.97561, 0.02439]
    of_vanilla = [linear_decay(epoch, 60, 30, 0) for epoch in range(60)]
    assert of_vanilla[:30] == [1.0] * 30
    assert of_vanilla[30] == pytest.approx(1 - 1 / 61)
    assert of_vanilla[59] == pytest.approx(1 - 30 / 61)


@pytest.mark.parametrize(("mode", "factor"), [("vanilla", 1 - 2 / 33), ("smug", 1 - 12 / 13)])
def test_the_schedule_is_that_of_the_mode(mode: str, factor: float) -> None:
    rates: list[float] = []
    module = reconstruction(mode, schedule="linear", lr=1e-4, n_samples=2)
    record = Recorder(on_train_batch_start=lambda run, *_: rates.append(run.optimizers[0].param_groups[0]["lr"]))
    run = trainer(record, max_epochs=32, limit_val_batches=0)
    run.fit(module, loader(1, 1, size=8))
    assert rates[-1] == pytest.approx(1e-4 * factor)
    assert rates[0] == 1e-4
    assert run.optimizers[0].defaults["betas"] == (0.5, 0.999)


def test_a_schedule_needs_a_number_of_epochs() -> None:
    with pytest.raises(MisconfigurationException, match="max_epochs=-1"):
        trainer(max_epochs=-1, max_steps=1).fit(reconstruction(schedule="linear"), loader())


def test_the_best_checkpoint_is_that_of_the_smallest_error(tmp_path: Path) -> None:
    saver = L.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor="val/rmse")
    run = trainer(saver, max_epochs=3, enable_checkpointing=True)
    module = reconstruction("smug", n_samples=2, noise=NoiseOptions(antithetic=True, seed=7))
    run.fit(module, loader(), loader(2, seed=1))
    best = LitReconstruction.load_from_checkpoint(saver.best_model_path, network=modl(), weights_only=True)
    (found,) = run.validate(best, loader(2, seed=1), verbose=False)
    assert found["val/rmse"] == pytest.approx(saver.best_model_score.item(), rel=1e-5)  # type: ignore[union-attr]
    rows = batch(2, seed=1)
    image = best.reconstruct(rows)
    each = [complex_mse(x, t).sqrt() for x, t in zip(image, rows["target"], strict=True)]
    assert found["val/rmse"] == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)
    assert {"val/psnr", "val/ssim", "val/nmse"} <= found.keys()


def test_named_sets_are_evaluated_apart() -> None:
    (first, *_) = trainer().test(reconstruction(), [loader(2), loader(2, seed=1)], verbose=False)
    named = trainer().validate(reconstruction(), {"near": loader(2), "far": loader(2, seed=1)}, verbose=False)
    assert "test/rmse/0" in first
    assert {"val/near_rmse", "val/far_psnr"} <= {name for part in named for name in part}


def test_predictions_are_images() -> None:
    (rows,) = trainer().predict(reconstruction(), loader(2))
    assert [row["index"] for row in rows] == [0, 1]
    assert rows[0]["image"].shape == (3, 12, 12)
    assert 0 <= rows[0]["image"].min() <= rows[0]["image"].max() <= 1


def test_an_evaluation_has_the_same_noise_each_time() -> None:
    module = reconstruction()
    assert torch.equal(module.reconstruct(batch()), module.reconstruct(batch()))
    assert not torch.equal(module.reconstruct(batch(), key=(2,)), module.reconstruct(batch()))
    plain = modl()(module.operator(batch()), batch()["kspace"]).image
    assert torch.equal(module.reconstruct(batch(), mode="vanilla"), plain)


# ---- pre-training ----------------------------------------------------------------------------------------------------


def test_a_denoiser_is_pre_trained_and_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = LitDenoiser(ConvDenoiser(channels=8, depth=3), sigma=0.1, lr=1e-2)
    losses = logged("train/loss")
    run = trainer(losses, max_epochs=10)
    run.fit(first, loader(), loader(2, seed=1))
    assert losses.values[-1] < losses.values[0]
    assert run.callback_metrics["val/rmse"] < 0.11
    run.save_checkpoint(tmp_path / "denoiser.ckpt")
    torch.save(first.denoiser.state_dict(), tmp_path / "state.pt")
    for name in ("denoiser.ckpt", "state.pt"):
        module = reconstruction(denoiser_weights=str(tmp_path / name), stability_target="frozen")
        assert module.reference is not None
        assert same(module.network.denoiser, first.denoiser)
        assert same(module.reference.denoiser, first.denoiser)


# ---- runs ------------------------------------------------------------------------------------------------------------

OPTIONS = {"max_epochs": 4, "limit_val_batches": 0, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}


@pytest.mark.parametrize(
    ("mode", "precision"), [("smug", "32"), ("weighted_smug", "bf16-mixed"), ("adversarial", "32"), ("rs_e2e", "32")]
)
def test_a_resumed_run_ends_in_the_same_bits(mode: str, precision: Any, tmp_path: Path) -> None:
    def fit(*callbacks: Any, ckpt_path: Path | None = None) -> LitReconstruction:
        module = reconstruction(mode, schedule="linear", n_samples=2, encoder=encoder() if "weighted" in mode else None)
        run = trainer(*callbacks, **OPTIONS, precision=precision)
        run.fit(module, loader(4, 1), ckpt_path=ckpt_path)
        return module

    path = tmp_path / "half.ckpt"
    save = Recorder(on_train_epoch_end=lambda run, _: run.save_checkpoint(path) if run.current_epoch == 1 else None)
    whole = fit(save)
    assert same(fit(ckpt_path=path), whole)
    assert not same(whole.network, modl())


def encoder() -> WeightEncoder:
    torch.manual_seed(1)
    return WeightEncoder(channels=4, depth=2)


def test_half_precision_is_of_the_denoiser_alone() -> None:
    kinds: dict[str, Any] = {}

    class Watched(ConvDenoiser):
        def forward(self, image: Tensor) -> Tensor:
            kinds["denoiser"] = self.layers(image).dtype
            return super().forward(image)

    module = LitReconstruction(MoDL(Watched(8, 3), steps=2), "smug", n_samples=2)
    found: list[Tensor] = []
    module.network.register_forward_hook(lambda _, __, output: found.append(output.image))
    trainer(max_steps=1, limit_val_batches=0, precision="bf16-mixed").fit(module, loader())
    assert kinds == {"denoiser": torch.bfloat16}
    assert found[0].dtype == torch.complex64


def test_pytorch_lightning_trains_it_as_lightning_does() -> None:
    package = import_module("pytorch_lightning")
    found = []
    for kind in (L, package):
        module = reconstruction(n_samples=2)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        kind.Trainer(max_epochs=1, enable_model_summary=False, **quiet).fit(module, loader(), loader(2, seed=1))
        found.append(weights(module))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "smoothed"}, "mode must be 'vanilla'"),
        ({"mode": "vanilla", "stability_target": "label"}, "no samples to hold"),
        ({"mode": "rs_e2e", "stability_target": "self"}, "'label' or 'frozen'"),
        ({"mode": "smug", "encoder": WeightEncoder(4, 2)}, "encoder is of mode='weighted_smug'"),
        ({"mode": "smug", "adversary": MeasurementPGD()}, "adversary is of mode='adversarial'"),
        ({"sigma": -0.1}, "sigma"),
        ({"n_samples": 3, "noise": NoiseOptions(antithetic=True)}, "even"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_arguments_are_checked(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reconstruction(**options)


def test_any_module_can_be_a_denoiser() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor) -> Tensor:
            return image * self.scale

    module = LitReconstruction(MoDL(Own(), steps=2), "smug", n_samples=2, lr=0.1)
    trainer(limit_val_batches=0).fit(module, loader())
    assert module.network.denoiser.scale.item() != 1
