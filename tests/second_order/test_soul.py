"""SOUL hands Sophia the curvature of what is to be kept."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn import NPO, SOUL, WAGLE, GradDiff, GradientAscent, Sophia, classifier_nll, training_step_loss
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.functional.curvature.gauss_newton import sample_labels
from tests.helpers import Recorder, bits, same, save_resumable, trainer, weights
from tests.user_module import LitNet, loaders, pairs
from tests.user_module import seeded as seeded_net

ROOT = Path(__file__).parents[2]


class SophiaNet(LitNet):
    """LitNet with Sophia; ``options`` are the optimizer's."""

    def __init__(self, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(dropout=dropout)
        self.options = options

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Sophia(self.parameters(), **({"lr": 1e-2, "betas": (0.9, 0.95), "rho": 1.0} | self.options))


seeded = partial(seeded_net, SophiaNet)


def curvature(run: L.Trainer) -> Tensor:
    (optimizer,) = run.optimizers
    return torch.cat([optimizer.state[p]["hessian"].flatten() for g in optimizer.param_groups for p in g["params"]])


def fit(
    *callbacks: Any, module: SophiaNet | None = None, data: Any = None, **options: Any
) -> tuple[L.Trainer, SophiaNet]:
    module = module or seeded()
    run = trainer(*(callbacks or (GradDiff(score=classifier_nll), SOUL())), **options)
    run.fit(module, data or loaders())
    return run, module


def graddiff(**options: Any) -> GradDiff:
    return GradDiff(score=classifier_nll, **options)


@pytest.mark.parametrize("estimator", ["gnb", "empirical", "hutchinson"])
def test_the_estimate_is_made_before_the_first_update_from_the_retain_rows(estimator: Any) -> None:
    run, _ = fit(graddiff(), SOUL(estimator=estimator), max_steps=1)
    module = seeded()
    x, y = next(iter(loaders()["retain"]))
    logits = module(x)
    if estimator == "gnb":
        y = sample_labels(logits, torch.arange(4) << 32, seed=SOUL()._key("retain", 0))
    loss = nn.functional.cross_entropy(logits, y)
    if estimator == "hutchinson":
        gradients = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        generator = torch.Generator().manual_seed(SOUL()._key("signs", 0))
        signs = [torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1 for p in module.parameters()]
        slope = sum((g * z).sum() for g, z in zip(gradients, signs, strict=True))
        products = torch.autograd.grad(slope, list(module.parameters()))
        expected = [z * hz for z, hz in zip(signs, products, strict=True)]
    else:
        loss.backward()
        expected = [p.grad.square() for p in module.parameters() if p.grad is not None]
    torch.testing.assert_close(curvature(run), 0.05 * torch.cat([e.flatten() for e in expected]), atol=1e-8, rtol=1e-5)
    assert run.optimizers[0].param_groups[0]["tokens"] == (1 if estimator == "hutchinson" else 4)


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
def test_the_mean_of_many_estimates_is_the_diagonal_of_the_hessian(estimator: Any) -> None:
    """Of the last bias, for which the Gauss-Newton matrix is the Hessian. At a learning rate of 0, h is a mean."""
    module = seeded(lr=0.0, betas=(0.9, 0.999), weight_decay=0.0)
    bias = module.net[3].bias
    module.requires_grad_(False)
    bias.requires_grad_(True)
    x, y = next(iter(pairs(4, 2)))
    hidden = module.net[:3](x) @ module.net[3].weight.T
    hessian = torch.autograd.functional.hessian(lambda b: nn.functional.cross_entropy(hidden + b, y), bias.detach())
    rows = {"forget": pairs(4, 1), "retain": pairs(4, 2)}
    run, _ = fit(graddiff(), SOUL(every_n_steps=1, estimator=estimator), module=module, data=rows, max_epochs=500)
    group = run.optimizers[0].param_groups[0]
    mean = group["tokens"] * run.optimizers[0].state[bias]["hessian"] / (1 - 0.999**500)
    torch.testing.assert_close(mean, hessian.diagonal(), rtol=0.15, atol=0)


@pytest.mark.parametrize("estimator", ["gnb", "empirical", "hutchinson"])
@pytest.mark.parametrize("data", ["retain", "both"])
def test_eight_rows_have_the_curvature_of_two_rows_four_times(estimator: Any, data: Any) -> None:
    found = []
    for size, count in ((8, 1), (2, 4)):
        rows = {"forget": pairs(8, 1, size), "retain": pairs(8, 2, size)}
        run, _ = fit(
            graddiff(),
            SOUL(estimator=estimator, hessian_data=data),
            data=rows,
            max_steps=1,
            accumulate_grad_batches=count,
        )
        found.append(curvature(run))
        assert run.optimizers[0].param_groups[0]["tokens"] == (
            1 if estimator == "hutchinson" else 8 * (1 + (data == "both"))
        )
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def gradients() -> Recorder:
    """The gradient of each update."""
    return Recorder(
        on_before_optimizer_step=lambda _, module, *__: torch.cat([p.grad.flatten() for p in module.parameters()])
    )


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}]
)
def test_training_does_not_feel_the_extra_pass(options: dict[str, Any]) -> None:
    """The gradients, the random numbers and the modes of layers are those of a run without SOUL."""
    seen, states = [], []
    for callbacks in ([graddiff()], [graddiff(), SOUL(every_n_steps=1)]):
        each = gradients()
        run, module = fit(*callbacks, each, module=seeded(dropout=0.5, lr=0.0), **options)
        assert module.training
        seen.append(torch.stack(each.values))
        states.append(torch.get_rng_state())
    assert curvature(run).max() > 0
    assert torch.equal(*seen)
    assert torch.equal(*states)


def test_the_estimate_comes_every_k_updates_and_not_every_k_batches() -> None:
    calls: list[int] = []

    class Counted(Sophia):
        def update_hessian(self, estimates: Any, bs: float) -> None:
            calls.append(run.global_step)
            super().update_hessian(estimates, bs)

    class Net(SophiaNet):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Counted(self.parameters(), lr=1e-3)

    run = trainer(graddiff(), SOUL(every_n_steps=3), max_epochs=4, accumulate_grad_batches=2)
    run.fit(Net(), loaders(16, 16))
    assert run.global_step == 8
    assert calls == [0, 3, 6]


def test_gnb_does_not_feel_the_scale_of_the_objective() -> None:
    found = {}
    for estimator in ("gnb", "empirical"):
        for weight in (1.0, 10.0):
            objective = graddiff(forget_weight=weight, retain_weight=weight)
            data: Any = "retain" if estimator == "gnb" else "objective"
            run, _ = fit(objective, SOUL(hessian_data=data, estimator=estimator), module=seeded(bs=4.0), max_steps=1)  # type: ignore[arg-type]
            found[estimator, weight] = curvature(run)
    assert torch.equal(found["gnb", 1.0], found["gnb", 10.0])
    torch.testing.assert_close(found["empirical", 10.0], 100 * found["empirical", 1.0])


def test_objective_takes_the_gradient_as_it_is_after_clipping() -> None:
    each = gradients()
    run, _ = fit(
        graddiff(),
        SOUL(hessian_data="objective", estimator="empirical", every_n_steps=2),
        each,
        module=seeded(bs=4.0, lr=0.0),
        max_steps=2,
        gradient_clip_val=1e-3,
        accumulate_grad_batches=2,
        max_epochs=4,
    )
    first = each.values[0] * 1e-3 / each.values[0].norm()
    torch.testing.assert_close(curvature(run), 0.05 * first.square(), rtol=1e-3, atol=0)


def test_released_is_the_released_optimizer() -> None:
    ours, module = fit(graddiff(), SOUL(parity="released"), module=seeded(rho=0.04), max_epochs=3)
    assert ours.callback_metrics["soul/clip_fraction"] < 1
    _, alone = fit(graddiff(), module=seeded(rho=0.04, parity="released", bs=5120.0), max_epochs=3)
    assert same(module, alone)
    _, paper = fit(graddiff(), SOUL(), module=seeded(rho=0.04), max_epochs=3)
    assert not same(module, paper)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("parity", ["paper", "released"])
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(options: dict[str, Any], parity: Any, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [NPO(score=classifier_nll), SOUL(every_n_steps=3, parity=parity)]

    _, whole = fit(*callbacks(), max_epochs=4, **options)
    half, _ = fit(*callbacks(), max_epochs=2, **options)
    save_resumable(half, tmp_path / "half.ckpt")
    module = seeded()
    run = trainer(*callbacks(), max_epochs=4, **options)
    run.fit(module, loaders(), ckpt_path=tmp_path / "half.ckpt")
    assert run.global_step > half.global_step
    assert same(whole, module)


def test_a_checkpoint_of_the_released_optimizer_is_not_resumed_as_the_papers(tmp_path: Path) -> None:
    half, _ = fit(graddiff(), SOUL(parity="released"), max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(MisconfigurationException, match="on SOUL too, or on neither"):
        trainer(graddiff(), SOUL(), max_epochs=2).fit(seeded(), loaders(), ckpt_path=tmp_path / "half.ckpt")


def test_it_logs_what_was_clipped_and_the_curvature() -> None:
    run, module = fit(graddiff(), SOUL(every_n_steps=1), max_steps=1)
    (optimizer,) = run.optimizers
    h, m = curvature(run), torch.cat([optimizer.state[p]["momentum"].flatten() for p in module.parameters()])
    clipped = m.abs() >= 1.0 * 4 * h + 1e-15
    expected = (clipped & (m != 0)).sum() / (m != 0).sum()
    assert run.callback_metrics["soul/clip_fraction"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert run.callback_metrics["soul/curvature_mean"].item() == pytest.approx((4 * h / 0.05).mean().item(), rel=1e-4)


def test_it_warns_when_only_the_sign_of_the_momentum_is_left() -> None:
    with pytest.warns(UserWarning, match="has become the sign of the momentum"):
        fit(graddiff(), SOUL(), module=seeded(rho=1e-9), max_epochs=13)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sign of the momentum")
        fit(graddiff(), SOUL(), module=seeded(rho=1e-9), max_epochs=12)  # 48 updates
        fit(graddiff(), SOUL(), module=seeded(rho=100.0), max_epochs=15)


def test_fp16_with_a_gradient_scaler_finds_the_same_curvature() -> None:
    exact, _ = fit(graddiff(), SOUL(), max_steps=1)
    scaled, _ = fit(
        graddiff(),
        SOUL(),
        max_steps=1,
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))],
    )
    torch.testing.assert_close(curvature(scaled), curvature(exact), atol=1e-5, rtol=0.02)


def test_plain_fine_tuning_on_rows_with_roles() -> None:
    class Plain(SophiaNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["retain"], batch_idx)

    run = trainer(SOUL(score=classifier_nll))
    run.fit(Plain(), {"retain": pairs(16, 2)})
    assert curvature(run).max() > 0


def test_the_command_line_attaches_it_without_code(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = (ROOT / "callbacks/second_order/soul.yaml").read_text().splitlines()[0].split()[3:]
    options = [
        f"--model.init_args.model={tiny_lm}",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.accelerator=cpu",
    ]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.max_steps=2"]
    cli = UnlearnCLI(["fit", *words, *options, *quiet])
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, Sophia)
    assert optimizer.param_groups[0]["lr"] == 1e-5
    assert optimizer.param_groups[0]["tokens"] > 6
    assert curvature(cli.trainer).max() > 0
    assert cli.trainer.callback_metrics["soul/clip_fraction"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, but got 0"),
        ({"hessian_data": "all"}, "hessian_data must be"),
        ({"estimator": "fisher"}, "estimator must be"),
        ({"parity": "code"}, "parity must be"),
        ({"hessian_data": "objective"}, "Set estimator='empirical'"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SOUL(**options)


class Manual(SophiaNet):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Elsewhere(SophiaNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Sophia(LitNet().parameters())


@pytest.mark.parametrize(
    ("module", "callbacks", "data", "message"),
    [
        (LitNet, lambda: [graddiff(), SOUL()], None, "--optimizer=lightning_unlearn.Sophia"),
        (Manual, lambda: [SOUL()], None, "optimizes manually"),
        (Elsewhere, lambda: [graddiff(), SOUL()], None, "parameters that are not the module's"),
        (lambda: SophiaNet(parity="released"), lambda: [graddiff(), SOUL()], None, "on SOUL too, or on neither"),
        (SophiaNet, lambda: [graddiff(), SOUL(hessian_data="objective", estimator="empirical")], None, "bs=5120"),
        (SophiaNet, lambda: [GradDiff(score=training_step_loss), SOUL()], None, "decorated with from_predictions"),
        (
            SophiaNet,
            lambda: [GradientAscent(score=classifier_nll), SOUL()],
            lambda: {"forget": pairs(8, 1)},
            r"reads the retain rows of every batch, but got \['forget'\]",
        ),
    ],
)
def test_a_run_that_can_not_work_is_refused(module: Any, callbacks: Any, data: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(*callbacks()).fit(module(), data() if data else loaders())


def test_an_estimate_that_is_not_finite_is_refused() -> None:
    module = seeded()
    rows = loaders()
    rows["retain"].dataset.tensors[0].fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="curvature estimate is not finite at step 0"):
        fit(GradientAscent(score=classifier_nll), SOUL(), module=module, data=rows)


def test_beside_a_mask_frozen_weights_stay_and_live_ones_move(tmp_path: Path) -> None:
    def masked() -> list[Any]:
        return [graddiff(), WAGLE(density=0.3), SOUL(every_n_steps=3)]

    start = weights(seeded())
    callbacks = masked()
    run, module = fit(*callbacks, max_epochs=4)
    live = torch.cat([callbacks[1].masks[name].flatten() for name, _ in module.named_parameters()])
    assert int(live.sum()) == int(0.3 * len(live))
    assert torch.equal(bits(weights(module)[~live]), bits(start[~live]))
    assert not torch.equal(weights(module)[live], start[live])
    assert curvature(run)[live].any()

    half, _ = fit(*masked(), max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = seeded()
    trainer(*masked(), max_epochs=4).fit(resumed, loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed, module)
