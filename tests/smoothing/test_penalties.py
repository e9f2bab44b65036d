"""The penalties in a run: the gradient of the equation, what is logged, and where they are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.data import DataLoader

from lightning_unlearn import (
    SCRUB,
    CurvatureRegularization,
    ForgetTerm,
    GradDiff,
    GradientPenalty,
    RandomMask,
    Smoothed,
    classifier_nll,
)
from lightning_unlearn.smoothing.hessian import check_derivative
from tests.helpers import Recorder, same, trainer
from tests.user_module import LitNet, loaders, pairs, seeded

GAMMA, COEF, MU = 0.7, 0.3, 0.05
MODES = ("double_backward", "finite_difference")


class Smooth(LitNet):
    """Double precision, and no kink: a second derivative everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


def graddiff() -> GradDiff:
    return GradDiff(forget_weight=2.0, retain_weight=GAMMA, score=lambda module, batch: nll(module(batch[0]), batch[1]))


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def fitted(*callbacks: Any, kind: type[LitNet] = Smooth, **options: Any) -> tuple[Any, list[Any]]:
    """The module after a run, and the gradient and logged numbers of its first update."""
    module = seeded(kind)
    watch = Recorder(
        on_before_optimizer_step=lambda _, module, __: flat([p.grad for p in module.parameters()]),
        on_train_batch_end=lambda trainer, *_: {k: v.item() for k, v in trainer.callback_metrics.items()},
    )
    trainer(*callbacks, watch, **options).fit(module, loaders())
    return module, watch.values


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def by_hand(penalty: Callable[[Callable[[Sequence[Tensor]], Tensor], list[Tensor]], Tensor]) -> Tensor:
    """The gradient of the first batch: of the retain term, and of the forget term with its penalty."""
    module = seeded(Smooth)
    names = [name for name, _ in module.named_parameters()]
    weights = [p.detach().requires_grad_() for p in module.parameters()]

    def term(weights: Sequence[Tensor], seed: int) -> Tensor:
        x, y = next(iter(pairs(16, seed)))
        return nll(functional_call(module, dict(zip(names, weights, strict=True)), (x,)), y).mean()

    def forget(weights: Sequence[Tensor]) -> Tensor:
        return -2.0 * term(weights, 1)

    total = forget(weights) + penalty(forget, weights) + GAMMA * term(weights, 2)
    return flat(torch.autograd.grad(total, weights))


def norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).norm()


def slope(loss: Callable[[Sequence[Tensor]], Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss(weights), weights, create_graph=True))


def distance(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("mode", MODES)
def test_an_update_has_the_gradient_of_the_penalized_term(mode: Any) -> None:
    _, (gradient, logged, *_) = fitted(graddiff(), GradientPenalty(COEF, mode))
    assert distance(gradient, by_hand(lambda loss, weights: COEF * norm(slope(loss, weights)))) < 1e-5
    assert distance(gradient, by_hand(lambda loss, weights: 0 * loss(weights))) > 1e-2
    assert logged["smooth/penalty"] == pytest.approx(COEF * logged["smooth/grad_norm"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("detach", [True, False])
def test_an_update_has_the_gradient_of_the_curvature(mode: Any, detach: bool) -> None:
    def penalty(loss: Any, weights: list[Tensor]) -> Tensor:
        first = slope(loss, weights)
        v = [g / norm(first) for g in first]
        moved = [w + MU * (x.detach() if detach else x) for w, x in zip(weights, v, strict=True)]
        return COEF * norm([a - b for a, b in zip(slope(loss, moved), first, strict=True)])

    _, (gradient, logged, *_) = fitted(graddiff(), CurvatureRegularization(COEF, MU, mode, detach))
    assert distance(gradient, by_hand(penalty)) < 1e-5
    assert distance(gradient, by_hand(lambda loss, weights: 0 * loss(weights))) > 1e-3
    assert logged["smooth/sharpness"] > 0
    assert logged["smooth/sharpness"] == pytest.approx(MU * logged["smooth/grad_norm"], rel=0.1)


@pytest.mark.parametrize(
    ("strategy", "passes"),
    [
        (GradientPenalty(COEF), 1),
        (GradientPenalty(COEF, "finite_difference"), 3),
        (CurvatureRegularization(COEF), 4),
        (CurvatureRegularization(COEF, mode="finite_difference"), 6),
    ],
)
def test_a_step_reads_the_forget_rows_so_often_and_the_retain_rows_once_at_the_weights_as_they_are(
    strategy: Any, passes: int
) -> None:
    forget, retain = (next(iter(pairs(16, seed)))[0] for seed in (1, 2))
    reads: list[tuple[str, bool]] = []
    start = flat(list(seeded(Smooth).parameters()))

    class Counted(Smooth):
        def forward(self, x: Tensor) -> Tensor:
            role = "forget" if torch.equal(x, forget) else "retain" if torch.equal(x, retain) else ""
            reads.append((role, torch.equal(flat(list(self.parameters())), start)))
            return super().forward(x)

    fitted(graddiff(), strategy, kind=Counted, max_steps=1)
    assert [role for role, _ in reads] == ["forget"] * passes + ["retain"]
    assert reads[-1] == ("retain", True)
    assert reads[0] == ("forget", True)


@pytest.mark.parametrize("strategy", [GradientPenalty(0.0), CurvatureRegularization(0.0)])
def test_a_coefficient_of_0_is_the_run_without(strategy: Any) -> None:
    plain, _ = fitted(graddiff())
    module, _ = fitted(graddiff(), strategy)
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=0, atol=1e-12)


def test_two_accumulated_batches_are_one_of_both_where_the_norm_is_of_equal_rows() -> None:
    """The penalty is of each batch; with the same rows twice it is that of both."""
    ends = []
    for accumulated in (1, 2):
        module = seeded(Smooth)
        rows = {role: [*loader.dataset][:4] * accumulated for role, loader in loaders().items()}
        run = trainer(graddiff(), GradientPenalty(COEF), accumulate_grad_batches=accumulated)
        run.fit(module, {role: DataLoader(dataset, batch_size=4) for role, dataset in rows.items()})
        assert run.global_step == 1
        ends.append(flat(list(module.parameters())))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_frozen_weights_stay(mode: Any) -> None:
    mask = RandomMask(0.5)
    start = {name: p.detach().clone() for name, p in seeded(Smooth).named_parameters()}
    module, _ = fitted(graddiff(), mask, GradientPenalty(COEF, mode))
    assert any(not torch.equal(p, start[name]) for name, p in module.named_parameters())
    for name, live in mask.masks.items():
        assert torch.equal(dict(module.named_parameters())[name][~live], start[name][~live])


class Attending(Smooth):
    """Attention over six copies of a row, each shifted by another vector."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.head, self.places = nn.Linear(8, 3), nn.Parameter(torch.randn(6, 8))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x.double()[:, None] + self.places).mean(1))


@pytest.mark.parametrize("make", [GradientPenalty, CurvatureRegularization])
def test_attention_is_differentiated_twice_and_agrees_with_differences(make: Any) -> None:
    found = [
        fitted(graddiff(), *strategy, kind=Attending)[1][0]
        for strategy in [*([make(coef=1.0, mode=mode)] for mode in MODES), []]
    ]
    exact, differences, plain = found
    assert distance(plain, exact) > 1e-3
    assert distance(differences, exact) < 1e-3 * distance(plain, exact)


def test_a_step_without_a_forget_term_is_not_smoothed() -> None:
    """Of SCRUB, whose passes alternate: the four batches of the max pass are smoothed, those of the min pass not."""
    calls: list[int] = []

    class Counted(GradientPenalty):
        def smooth(self, term: ForgetTerm) -> Smoothed:
            calls.append(term.update)
            return super().smooth(term)

    trainer(SCRUB(max_passes=1), Counted(0.1), max_epochs=2).fit(seeded(dropout=0.5), loaders())
    assert calls == [0, 1, 2, 3]


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [GradientPenalty, CurvatureRegularization])
def test_double_backward_on_sharded_weights_names_the_way_out(make: Any) -> None:
    sharded = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    with pytest.raises(MisconfigurationException, match=r"shards the weights.*mode='finite_difference'"):
        trainer(graddiff(), make(), strategy=sharded).fit(seeded(), loaders())


def test_double_backward_with_a_scaled_loss_names_the_way_out() -> None:
    scaled: Any = SimpleNamespace(strategy=None, precision_plugin=SimpleNamespace(scaler=object()))
    check_derivative("GradientPenalty", "finite_difference", scaled)
    with pytest.raises(MisconfigurationException, match=r"16-mixed.*mode='finite_difference'"):
        check_derivative("GradientPenalty", "double_backward", scaled)


class Fused(torch.autograd.Function):
    """A kernel as libraries write one: its backward pass has no derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * ctx.saved_tensors[0].cos()


class FusedNet(Smooth):
    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](Fused.apply(self.net[0](x.double())))


@pytest.mark.parametrize("make", [GradientPenalty, CurvatureRegularization])
def test_a_kernel_without_a_second_derivative_names_the_way_out(make: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"no second derivative.*mode='finite_difference'"):
        fitted(graddiff(), make(), kind=FusedNet)
    module, _ = fitted(graddiff(), make(mode="finite_difference"), kind=FusedNet)
    assert flat(list(module.parameters())).isfinite().all()


@pytest.mark.parametrize(
    "strategy",
    [GradientPenalty(mode="finite_difference"), CurvatureRegularization(), CurvatureRegularization(mode=MODES[1])],
)
def test_differences_at_weights_in_half_precision_are_refused(strategy: Any) -> None:
    method = GradDiff(score=classifier_nll)
    with pytest.raises(MisconfigurationException, match=r"half precision.*precision='bf16-mixed'"):
        trainer(method, strategy, precision="bf16-true").fit(seeded(), loaders())


def test_bf16_mixed_is_within_its_precision_of_fp32() -> None:
    ends = []
    for precision in ("32-true", "bf16-mixed"):
        method = GradDiff(score=classifier_nll)
        _, (gradient, *_) = fitted(method, GradientPenalty(COEF), kind=Tanh, precision=precision)
        ends.append(gradient)
    assert distance(*ends) < 0.03


class Tanh(LitNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientPenalty(-1.0), "coef must be at least 0, but got -1.0"),
        (lambda: GradientPenalty(mode="hessian"), "mode must be 'double_backward' or 'finite_difference'"),
        (lambda: CurvatureRegularization(mu=0.0), "mu must be greater than 0, but got 0.0"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    def fit(epochs: int, **options: Any) -> tuple[Any, Any]:
        module = seeded(Tanh)
        run = trainer(GradDiff(score=classifier_nll), GradientPenalty(COEF), max_epochs=epochs)
        run.fit(module, loaders(), **options)
        return run, module

    _, whole = fit(2)
    half, _ = fit(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed, whole)
