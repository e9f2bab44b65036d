"""Denoisers inside modules that know nothing of smoothing."""

from __future__ import annotations

import pickle
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_unlearn import GaussianSmoother, SmoothDenoiser
from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.reconstruction.smooth_denoiser import find_parts
from lightning_unlearn.reconstruction.smoothed_forward import Draws, SmoothedForward
from tests.helpers import Recorder, same, trainer, weights

IMAGES = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two steps of a denoiser, as a user writes it."""

    def __init__(self, denoiser: nn.Module, checkpointing: str = "") -> None:
        super().__init__()
        self.denoiser, self.checkpointing = denoiser, checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            if self.checkpointing == "denoiser":
                x = 0.5 * x + 0.5 * checkpoint(self.denoiser, x, use_reentrant=False)
            elif self.checkpointing:
                keep = self.checkpointing == "step"
                x = checkpoint(self.step, x, use_reentrant=False, preserve_rng_state=keep)
            else:
                x = self.step(x)
        return x

    def step(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * self.denoiser(x)


class LitUser(L.LightningModule):
    """A user's module."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = Net(denoiser()) if net is None else net
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(self.net(batch).detach())

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))


def rows(count: int = 8, batch_size: int = 2) -> DataLoader:
    return DataLoader(IMAGES[:count], batch_size=batch_size)  # type: ignore[arg-type]


def smooth(path: str = "net.denoiser", sigma: float = 0.3, n_samples: int = 4, **options: Any) -> SmoothDenoiser:
    return SmoothDenoiser(path, sigma, n_samples, **options)


def predicted(net: nn.Module, callback: SmoothDenoiser, data: Any = None) -> Tensor:
    found = trainer(callback).predict(LitUser(net), rows() if data is None else data)
    return torch.cat([part if isinstance(part, Tensor) else part.sample for part in found])  # type: ignore[union-attr]


def by_hand(net: Net, batches: DataLoader, stage: int = 3, shared: bool = False) -> Tensor:
    """What the smoothed net is to give: the mean over noise at each of its two calls."""
    smoother, found = GaussianSmoother(0.3, 4), []
    for number, x in enumerate(batches):
        for call in range(2):
            key = (stage, 0, number) if shared else (stage, 0, number, call)
            noise = smoother.noise(x, key)
            x = 0.5 * x + 0.5 * torch.stack([net.denoiser(x + one) for one in noise]).mean(0)
        found.append(x)
    return torch.cat(found).detach()


@pytest.mark.parametrize("shared", [False, True])
def test_it_is_the_mean_over_noise_at_each_call(shared: bool) -> None:
    net = Net(denoiser())
    found = predicted(net, smooth(shared=shared))
    torch.testing.assert_close(found, by_hand(net, rows(), shared=shared), atol=1e-6, rtol=0)
    assert (found - net(IMAGES)).abs().max() > 1e-3


def test_without_noise_it_is_the_plain_module_with_as_many_calls() -> None:
    net, calls = Net(denoiser()), []
    net.denoiser.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    assert torch.equal(predicted(net, smooth(sigma=0.0)), torch.cat([net(x) for x in rows()]))
    assert calls == [2] * 16


def test_all_samples_go_through_in_one_batch() -> None:
    net, calls = Net(denoiser()), []
    net.denoiser[0].register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))  # type: ignore[index]
    predicted(net, smooth(n_samples=6))
    assert calls == [12] * 8  # 6 samples of 2 rows, 2 steps, 4 batches


# ---- what it leaves alone --------------------------------------------------------------------------------------------


def test_the_checkpoint_is_the_users_and_the_module_is_given_back(tmp_path: Path) -> None:
    module = LitUser()
    names = list(module.state_dict())
    saved = Recorder(on_train_end=lambda run, _: run.save_checkpoint(tmp_path / "run.ckpt"))
    trainer(smooth(), saved, limit_val_batches=0).fit(module, rows())
    assert "forward" not in vars(module.net.denoiser)
    again = LitUser.load_from_checkpoint(tmp_path / "run.ckpt")
    assert list(again.state_dict()) == names
    assert same(again, module)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_gives_the_denoiser_back_when_a_run_fails(error: type[BaseException]) -> None:
    module, callback = LitUser(), smooth()

    def fail(*_: Any) -> None:
        raise error

    with pytest.raises((error, SystemExit)):
        trainer(callback, Recorder(on_train_batch_end=fail), limit_val_batches=0).fit(module, rows())
    assert "forward" not in vars(module.net.denoiser)
    assert torch.equal(predicted(module.net, smooth(stages=("fit",))), torch.cat([module.net(x) for x in rows()]))


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_stages(stage: Any) -> None:
    for stages in ((stage,), tuple({"fit", "validate", "test", "predict"} - {stage})):
        module, plain = LitUser(), LitUser()
        run = trainer(smooth(stages=stages), max_epochs=1, num_sanity_val_steps=0)
        if stage == "fit":
            run.fit(module, rows(), rows(2))
            trainer(max_epochs=1, num_sanity_val_steps=0).fit(plain, rows(), rows(2))
            assert same(module, plain) == (stage not in stages)
        elif stage == "predict":
            (found,) = run.predict(module, rows(2))  # type: ignore[misc]
            assert torch.equal(found, plain.net(IMAGES[:2])) == (stage not in stages)  # type: ignore[arg-type]
        else:
            getattr(run, stage)(module, rows(2), verbose=False)
            assert torch.equal(module.seen[0], plain.net(IMAGES[:2])) == (stage not in stages)


def test_each_validation_has_the_same_noise_and_each_training_step_its_own() -> None:
    module = LitUser()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)  # type: ignore[method-assign]
    losses = Recorder(on_train_batch_end=lambda _, __, outputs, *___: outputs["loss"].item())
    trainer(smooth(), losses, max_epochs=2).fit(module, rows(2), rows(2))
    assert len(module.seen) == 3  # the sanity check, and each epoch
    assert torch.equal(module.seen[0], module.seen[1])
    assert torch.equal(module.seen[1], module.seen[2])
    assert losses.values[0] != losses.values[1]


# ---- copies, wrappers and recomputation ------------------------------------------------------------------------------


def test_a_copy_made_in_a_run_is_smoothed_by_its_own_weights_and_plain_afterwards() -> None:
    copies: list[Any] = []
    module = LitUser()

    def copy(_: Any, own: LitUser, *rest: Any) -> None:
        copies.extend([deepcopy(own.net), pickle.loads(pickle.dumps(own.net))])
        with torch.no_grad():
            for parameter in copies[0].parameters():
                parameter.zero_()
        assert (own.net(IMAGES) - own.net(IMAGES)).abs().max() > 0  # smoothed, with new noise
        assert torch.equal(copies[0](IMAGES), 0.25 * IMAGES)  # of weights that are 0

    trainer(smooth(), Recorder(on_train_batch_start=copy), max_steps=1, limit_val_batches=0).fit(module, rows())
    assert torch.equal(copies[0](IMAGES), 0.25 * IMAGES)
    assert torch.equal(copies[1](IMAGES), LitUser().net(IMAGES))


def test_it_stands_beside_weight_averaging_and_pickles() -> None:
    module, callback = LitUser(), smooth()
    averaging = WeightAveraging()
    trainer(averaging, callback, max_epochs=2).fit(module, rows(), rows(2))
    again = pickle.loads(pickle.dumps(callback))
    assert torch.equal(predicted(module.net, again), predicted(module.net, deepcopy(callback)))
    assert (predicted(module.net, again) - module.net(IMAGES)).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", ["denoiser", "step"])
def test_checkpointed_calls_are_repeated_with_their_noise(checkpointing: str) -> None:
    found = []
    for way in ("", checkpointing):
        module = LitUser(Net(denoiser(), way))
        trainer(smooth(), max_epochs=1, limit_val_batches=0).fit(module, rows())
        found.append(weights(module))
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_a_checkpoint_without_the_random_state_is_refused_unless_the_noise_is_shared() -> None:
    module = LitUser(Net(denoiser(), "step without random state"))
    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        trainer(smooth(), limit_val_batches=0).fit(module, rows())
    trainer(smooth(shared=True), limit_val_batches=0).fit(LitUser(Net(denoiser(), "other")), rows())


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_denoiser_or_net(whole: bool) -> None:
    torch._dynamo.reset()
    net = Net(denoiser())
    expected = predicted(net, smooth())
    if whole:
        compiled: Any = torch.compile(net, backend="eager")
    else:
        compiled = Net(torch.compile(net.denoiser, backend="eager"))  # type: ignore[arg-type]
    for _ in range(2):
        torch.testing.assert_close(predicted(compiled, smooth()), expected, atol=1e-6, rtol=0)
    assert torch.equal(predicted(compiled, smooth(sigma=0.0)), predicted(net, smooth(sigma=0.0)))


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_resumed_run_ends_in_the_same_bits(precision: Any, tmp_path: Path) -> None:
    def fit(*callbacks: Any, ckpt_path: Path | None = None) -> LitUser:
        module = LitUser()
        options = {"max_epochs": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0, "precision": precision}
        trainer(smooth(), *callbacks, **options).fit(module, rows(), ckpt_path=ckpt_path)
        return module

    path = tmp_path / "half.ckpt"
    save = Recorder(on_train_epoch_end=lambda run, _: run.save_checkpoint(path) if run.current_epoch == 1 else None)
    whole = fit(save)
    assert same(fit(ckpt_path=path), whole)


def test_shares_of_a_batch_get_the_noise_of_the_whole() -> None:
    part, smoother = denoiser(), GaussianSmoother(0.3, 4)
    whole = SmoothedForward(part.forward, smoother, _begun(Replica(0, 1)))(IMAGES)
    shares = [SmoothedForward(part.forward, smoother, _begun(Replica(r, 2)))(IMAGES[r::2]) for r in range(2)]
    torch.testing.assert_close(torch.stack(shares, 1).flatten(0, 1), whole, atol=1e-6, rtol=0)


def _begun(replica: Replica) -> Draws:
    draws = Draws(replica)
    draws.begin(0, 5, 5)
    return draws


def test_pytorch_lightning() -> None:
    package = import_module("pytorch_lightning")

    class Other(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(denoiser())

        def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(batch)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    run = package.Trainer(callbacks=[smooth()], enable_model_summary=False, **quiet)
    found = torch.cat(run.predict(Other(), rows()))
    assert torch.equal(found, predicted(Net(denoiser()), smooth()))


# ---- denoisers of every kind -----------------------------------------------------------------------------------------


class Record(NamedTuple):
    sample: Tensor


class WithArguments(nn.Module):
    """Takes time steps and conditions, as a diffusion model does; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def forward(self, sample: Tensor, t: Any, level: float = 0.0, condition: Any = None) -> Record:
        self.given.append((sample, t, level, condition))
        return Record(sample * t.view(-1, 1, 1, 1) if isinstance(t, Tensor) and t.dim() else sample)


def test_only_the_first_tensor_gets_noise_and_what_has_its_rows_is_repeated() -> None:
    part = WithArguments()
    smoothed = SmoothedForward(part.forward, GaussianSmoother(0.1, 3), _begun(Replica(0, 1)))
    x, t = IMAGES[:2], torch.tensor([2.0, 3.0])
    table, rows_of = torch.ones(5, 4), torch.arange(2)
    found = smoothed(x, t, level=0.5, condition={"table": table, "rows": rows_of, "name": "a"})
    sample, time, level, condition = part.given[0]
    assert sample.shape == (6, 2, 6, 6)
    assert time.tolist() == [2, 3] * 3
    assert level == 0.5
    assert condition["table"] is table
    assert condition["rows"].tolist() == [0, 1] * 3
    assert condition["name"] == "a"
    assert isinstance(found, Record)
    noise = GaussianSmoother(0.1, 3).noise(x, (0, 5, 5, 0))
    torch.testing.assert_close(found.sample, (x + noise.mean(0)) * t.view(-1, 1, 1, 1))
    assert smoothed(sample=x, t=torch.tensor(4)).sample.shape == (2, 2, 6, 6)


def test_a_scalar_is_no_batch_of_images() -> None:
    part = WithArguments()
    smoothed = SmoothedForward(part.forward, GaussianSmoother(0.1, 3), _begun(Replica(0, 1)))
    with pytest.raises(TypeError, match="int64 of shape"):
        smoothed(torch.tensor([1, 2]), IMAGES)
    with pytest.raises(TypeError, match="called with int, str"):
        smoothed(1, "a")


def test_complex_images_and_channels_last_keep_their_kind() -> None:
    complex_images = torch.view_as_complex(torch.randn(2, 6, 6, 2))
    smoothed = SmoothedForward(torch.square, GaussianSmoother(0.1, 4), _begun(Replica(0, 1)))
    noise = GaussianSmoother(0.1, 4).noise(complex_images, (0, 5, 5, 0))
    torch.testing.assert_close(smoothed(complex_images), (complex_images + noise).square().mean(0))
    strides: list[bool] = []
    keeps = {"memory_format": torch.channels_last}

    def layout(x: Tensor) -> Tensor:
        strides.append(x.is_contiguous(**keeps))
        return x

    SmoothedForward(layout, GaussianSmoother(0.1, 4), _begun(Replica(0, 1)))(IMAGES.contiguous(**keeps))
    assert strides == [True]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x, x), "tuple with 2"),
        (lambda x: {"a": x, "b": x.mean()}, "dict with 2"),
        (lambda x: None, "NoneType with 0"),
        (lambda x: x.mean(), "called with 8 rows"),
        (lambda x: x[:1], r"shape \(1, 2, 6, 6\)"),
    ],
)
def test_outputs_that_are_no_image_are_refused(output: Any, message: str) -> None:
    smoothed = SmoothedForward(output, GaussianSmoother(0.1, 4), _begun(Replica(0, 1)))
    with pytest.raises(TypeError, match=message):
        smoothed(IMAGES[:2])


def test_a_path_to_nowhere_names_the_closest_ones() -> None:
    with pytest.raises(MisconfigurationException, match=r"'net\.denoisr' names no part of LitUser.*net\.denoiser"):
        trainer(smooth("net.denoisr")).predict(LitUser(), rows())
    with pytest.raises(MisconfigurationException, match=r"network\.denoiser.*net\.denoiser"):
        find_parts(LitUser(), "network.denoiser")


def test_a_part_that_is_not_called_is_an_error() -> None:
    class Idle(LitUser):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(2, 2)

    with pytest.raises(MisconfigurationException, match="did not call 'idle' of Idle"):
        trainer(smooth("idle"), limit_val_batches=0).fit(Idle(), rows())


def test_a_pattern_smooths_several_parts() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prior = nn.ModuleList(nn.Sequential(denoiser()) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.prior:
                x = part(x)
            return x

    net = Many()
    assert len(find_parts(net, "prior.?")) == 3
    assert (predicted(net, smooth("net.prior.?")) - net(IMAGES)).abs().max() > 1e-3


def test_a_module_that_is_built_late() -> None:
    class Late(LitUser):
        def __init__(self) -> None:
            super().__init__(nn.Identity())

        def configure_model(self) -> None:
            if isinstance(self.net, nn.Identity):
                self.net = Net(denoiser())

    found = torch.cat(trainer(smooth()).predict(Late(), rows()))  # type: ignore[arg-type]
    assert torch.equal(found, predicted(Net(denoiser()), smooth()))


def test_the_unet_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        *(8, 2, 2),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()

    class Denoise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x: Tensor) -> Tensor:
            return self.unet(x, torch.arange(len(x))).sample

    images = torch.randn(2, 2, 8, 8)
    found = predicted(Denoise(), smooth("net.unet", 0.1, 3), DataLoader(images, batch_size=2))  # type: ignore[arg-type]
    noise = GaussianSmoother(0.1, 3).noise(images, (3, 0, 0, 0))
    expected = torch.stack([Denoise()(images + one) for one in noise]).mean(0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"sigma": -1.0}, {"n_samples": 0}, {"n_samples": 3, "antithetic": True}])
def test_numbers_are_checked(options: Any) -> None:
    with pytest.raises(ValueError, match=r"sigma|n_samples"):
        smooth(**options)
    with pytest.raises(ValueError, match="'fit', 'validate', 'test' or 'predict'"):
        smooth(stages=("train",))
