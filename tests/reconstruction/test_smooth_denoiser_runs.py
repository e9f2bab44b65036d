"""Names and runs of denoisers that are written in other ways than ours."""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import GaussianSmoother, MeasurementPGD, SmoothDenoiser
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.reconstruction.smooth_denoiser import find_parts
from tests.helpers import Recorder, same, trainer, weights
from tests.reconstruction.test_smooth_denoiser import IMAGES, LitUser, Net, by_hand, denoiser, predicted, rows, smooth
from tests.reconstruction.test_smooth_denoiser_arguments import Calls
from tests.reconstruction.tiny import loader, reconstruction

# ---- names -----------------------------------------------------------------------------------------------------------


class Listed(nn.Module):
    """Denoisers in a list, each of several layers."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        first = denoiser()
        self.denoisers = nn.ModuleList([first] * 3 if shared else [first, denoiser(), denoiser()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.denoisers:
            x = part(x)
        return x


def test_a_pattern_smooths_no_layer_inside_of_what_it_matches() -> None:
    net = Listed()
    for path in ("denoisers.*", "*denoisers.*", "denoisers*", "*"):
        assert find_parts(net, path) == list(net.denoisers)
    calls: list[int] = []
    for part in net.denoisers:
        part[2].register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))  # type: ignore[index]
    predicted(net, smooth("net.denoisers.*", n_samples=5), rows(2))
    assert calls == [10] * 3  # 5 samples of 2 rows, and not 5 times 5


def test_a_list_is_not_called() -> None:
    with pytest.raises(MisconfigurationException, match=r"ModuleList.*net\.denoisers\.\*.*net\.denoisers\.0, net"):
        trainer(smooth("net.denoisers")).predict(LitUser(Listed()), rows())


@pytest.mark.parametrize("path", ["net.denoisers.0", "net.denoisers.2", "net.denoisers.*"])
def test_a_denoiser_of_several_names_is_smoothed_once_by_each_of_them(path: str) -> None:
    net = Listed(shared=True)
    x, smoother = IMAGES[:2], GaussianSmoother(0.3, 4)
    for call in range(3):
        noise = smoother.noise(x, (3, 0, 0, call))
        x = torch.stack([net.denoisers[0](x + one) for one in noise]).mean(0)
    torch.testing.assert_close(predicted(net, smooth(path), rows(2)), x.detach(), atol=1e-6, rtol=0)


def test_a_part_is_not_smoothed_by_two_callbacks() -> None:
    with pytest.raises(MisconfigurationException, match=r"smooths 'net\.denoiser' already"):
        trainer(smooth(), smooth()).predict(LitUser(), rows())
    assert predicted(Net(denoiser()), smooth()).shape == IMAGES.shape


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_module_that_smooths_by_itself_is_refused() -> None:
    smoother = SmoothDenoiser("network.denoiser", sigma=0.1)
    with pytest.raises(MisconfigurationException, match="smooths by itself, as its mode is 'smug'"):
        trainer(smoother, max_steps=1, limit_val_batches=0).fit(reconstruction(n_samples=2), loader())
    trainer(smoother, max_steps=1, limit_val_batches=0).fit(reconstruction("vanilla"), loader())


class TrainsAround(LitUser):
    """Calls the layers of the denoiser in training, and the denoiser in validation."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = batch
        for layer in self.net.denoiser:  # type: ignore[union-attr]
            x = layer(x)
        return x.square().mean()


def test_a_training_that_goes_around_the_denoiser_stops_before_an_update() -> None:
    module = TrainsAround()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=r"did not call 'net\.denoiser'"):
        trainer(smooth()).fit(module, rows(), rows())  # the sanity check calls it
    assert torch.equal(weights(module), before)


def test_a_validation_of_a_copy_is_told() -> None:
    class Copied(LitUser):
        def __init__(self) -> None:
            super().__init__()
            self.average = Net(denoiser())

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.seen.append(self.average(batch))

    with pytest.warns(UserWarning, match=r"validation did not call 'net\.denoiser'.*copy"):
        trainer(smooth()).fit(Copied(), rows(), rows())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*did not call")
        trainer(smooth("*.denoiser")).fit(Copied(), rows(), rows())


def test_epochs_have_their_own_noise_where_updates_are_not_counted() -> None:
    class Manual(LitUser):
        """Steps the optimizer of torch itself, which Lightning does not count."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.losses: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            loss = super().training_step(batch, batch_idx)
            loss.backward()
            optimizer.step()
            self.losses.append(loss.item())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Manual()
    trainer(smooth(), max_epochs=3, limit_val_batches=0).fit(module, rows(2))
    assert len(set(module.losses)) == 3


def test_noise_that_low_precision_rounds_away_is_told() -> None:
    for precision, sigma, warns in (("bf16-mixed", 1e-5, True), ("bf16-mixed", 0.05, False), ("32-true", 1e-5, False)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            trainer(smooth(sigma=sigma), precision=precision).predict(LitUser(), rows())
        assert any("lost to the rounding of torch.bfloat16" in str(one.message) for one in seen) == warns


def test_two_evaluations_from_one_random_state_have_the_same_noise() -> None:
    """As those of an attack, which compares perturbations under the same noise."""
    found: list[Tensor] = []

    def evaluate(_: Any, module: LitUser, *rest: Any) -> None:
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(module.net(IMAGES[:2]))

    trainer(smooth(), Recorder(on_predict_batch_start=evaluate), limit_predict_batches=1).predict(LitUser(), rows(2))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_an_adaptive_attack_reaches_the_plain_network() -> None:
    class Scanned(LitUser):
        def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
            images = torch.view_as_real(batch["kspace"][:, 0]).movedim(-1, 1)
            return torch.view_as_complex(self.net(images).movedim(1, -1).contiguous())

        def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:  # type: ignore[override]
            scans = torch.view_as_complex(batch.movedim(1, -1).contiguous())
            one = {"kspace": scans[:, None], "target": scans}
            before = self.reconstruct(one)
            assert torch.equal(callback.unsmoothed(self, one), plain.reconstruct(one))
            assert not torch.equal(before, plain.reconstruct(one))
            attack = MeasurementPGD(eps=0.1, steps=2, surrogate="adaptive", base=callback.unsmoothed)
            found = attack.attack(self, one)
            assert found.loss is not None
            assert (found.loss >= found.clean_loss).all()
            again = attack.attack(self, one)
            assert torch.equal(found.loss, again.loss)  # type: ignore[arg-type]
            assert not torch.equal(self.reconstruct(one), plain.reconstruct(one))  # smoothed as before
            return batch

    callback, plain = smooth(), Scanned()
    assert trainer(callback).predict(Scanned(), rows(2))


class WithNet(LitUser):
    """Has the net itself among its hyperparameters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.save_hyperparameters("net")


def test_a_checkpoint_with_the_net_in_it_names_nothing_of_this_package(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    module = WithNet(Net(denoiser()))
    saved = Recorder(on_train_batch_end=lambda run, *_: run.save_checkpoint(path))
    trainer(smooth(), saved, limit_train_batches=1).fit(module, rows(), rows())
    with ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        named = {argument for _, argument, _ in pickletools.genops(archive.read(name)) if isinstance(argument, str)}
    assert any(name.endswith(" Net") for name in named)
    assert not any("lightning_unlearn" in name for name in named)
    again = torch.load(path, weights_only=False)["hyper_parameters"]["net"]
    assert same(again, module.net)
    assert torch.equal(again(IMAGES), module.net(IMAGES))


@pytest.mark.parametrize("make", [torch.jit.script, lambda part: torch.jit.trace(part, IMAGES[:2])])
def test_a_scripted_denoiser(make: Any) -> None:
    part = make(denoiser().requires_grad_(False))
    found = predicted(Net(part), smooth())
    torch.testing.assert_close(found, by_hand(Net(denoiser()), rows()), atol=1e-6, rtol=0)
    assert torch.equal(Net(part)(IMAGES), Net(denoiser())(IMAGES))


def test_a_denoiser_that_compiles_itself() -> None:
    torch._dynamo.reset()
    part = denoiser()
    part.compile(backend="eager")
    plain = torch.cat([Net(part)(x) for x in rows()])
    found = predicted(Net(part), smooth())
    torch.testing.assert_close(found, by_hand(Net(denoiser()), rows()), atol=1e-6, rtol=0)
    assert torch.equal(torch.cat([Net(part)(x) for x in rows()]), plain)


# ---- networks of other packages --------------------------------------------------------------------------------------


def monai_unet() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.UNet(2, 2, 2, channels=(4, 8), strides=(2,), norm="batch", dropout=0.1)


def deepinv_dncnn() -> nn.Module:
    return pytest.importorskip("deepinv").models.DnCNN(2, 2, depth=4, nf=8, pretrained=None)


def deepinv_drunet() -> nn.Module:
    part = pytest.importorskip("deepinv").models.DRUNet(2, 2, nc=(4, 8, 8, 8), nb=1, pretrained=None)
    return Calls(part, lambda part, x: part(x, sigma=torch.full((len(x),), 0.1)))


def batch_norm() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Conv2d(4, 2, 3, padding=1)]
    return nn.Sequential(*layers)


def weight_norm() -> nn.Module:
    part = denoiser()
    nn.utils.parametrizations.weight_norm(part[0])  # type: ignore[index]
    nn.utils.parametrizations.spectral_norm(part[2])  # type: ignore[index]
    return part


MAKERS = [monai_unet, deepinv_dncnn, deepinv_drunet, batch_norm, weight_norm]


@pytest.mark.parametrize("make", MAKERS)
def test_a_foreign_network_trains_smoothed_and_is_left_as_it_was(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    def user() -> LitUser:
        torch.manual_seed(0)
        return LitUser(Net(make()))

    def fit(*callbacks: L.Callback) -> LitUser:
        module = user()
        module.net.denoiser.given = {name: set(vars(part)) for name, part in module.named_modules()}  # type: ignore
        trainer(*callbacks, accumulate_grad_batches=2, max_epochs=2).fit(module, images, images)
        return module

    images = torch.utils.data.DataLoader(torch.randn(4, 2, 16, 16), batch_size=2)  # type: ignore[arg-type]
    plain, without = fit(), fit(SmoothDenoiser("net.denoiser", sigma=0.0))
    assert same(plain, without)
    path = tmp_path / "run.ckpt"
    save = Recorder(on_train_end=lambda run, _: run.save_checkpoint(path))
    module = fit(SmoothDenoiser("net.denoiser", sigma=0.1, n_samples=3), save)
    assert not same(plain, module)
    again = user()
    again.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    assert same(again, module)
    assert not any("forward" in vars(part) for part in module.modules())


def test_the_unfolded_network_of_deepinv() -> None:
    deepinv = pytest.importorskip("deepinv")
    physics = deepinv.physics.Inpainting((2, 16, 16), mask=0.5)
    priors = [deepinv.optim.prior.PnP(deepinv_dncnn()) for _ in range(2)]
    network = deepinv.unfolded.unfolded_builder(
        "PGD",
        params_algo={"stepsize": [1.0, 1.0], "g_param": [0.01, 0.01]},
        trainable_params=["stepsize", "g_param"],
        data_fidelity=deepinv.optim.data_fidelity.L2(),
        max_iter=2,
        prior=priors,
    )
    calls: list[int] = []
    for prior in priors:
        prior.denoiser.register_forward_pre_hook(lambda *_: calls.append(0))
        prior.denoiser.in_conv.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    net = Calls(network, lambda part, x: part(physics(x), physics))
    images = torch.utils.data.DataLoader(torch.randn(2, 2, 16, 16), batch_size=2)  # type: ignore[arg-type]
    predicted(net, smooth("net.denoiser.prior.*.denoiser", n_samples=3), images)
    assert calls == [0, 6, 0, 6]
    with pytest.raises(MisconfigurationException, match="did not call"):  # a prior is asked for its prox, not called
        predicted(net, smooth("net.denoiser.prior.*"), images)
