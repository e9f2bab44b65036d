"""The base callback on a user's module: training, resuming, references, NaN and crashes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import lightning_unlearn
from lightning_unlearn import (
    CEU,
    NPO,
    PDU,
    SCRUB,
    UNDIAL,
    WGA,
    BadTeacher,
    EmbeddingDifference,
    FineTune,
    ForgetKL,
    ForgetRetainDataModule,
    GradDiff,
    GradientAscent,
    KLMinimization,
    L1Sparse,
    NegGradPlus,
    Ramp,
    RandomLabels,
    SatImp,
    SimNPO,
    TaskVector,
    UGradSL,
    UGradSLPlus,
    UnlearnCallback,
    classifier_nll,
    training_step_loss,
)
from lightning_unlearn.functional.objectives.npo import npo
from tests.helpers import Recorder, logged, same, save_resumable, trainer, weights
from tests.user_module import DictNet, LitNet, indexed, loaders, nll, pairs, seeded

METHODS = {
    "GradientAscent": lambda: GradientAscent(score=classifier_nll),
    "GradDiff": lambda: GradDiff(score=classifier_nll),
    "KLMinimization": lambda: KLMinimization(score=classifier_nll),
    "NPO": lambda: NPO(score=classifier_nll),
    "NPO+KL": lambda: NPO(score=classifier_nll, retain="kl"),
    "SimNPO": lambda: SimNPO(score=classifier_nll),
    "WGA": lambda: WGA(score=classifier_nll),
    "SatImp": lambda: SatImp(beta1=1.0, score=classifier_nll),
    "CEU": lambda: CEU(ignore_first=0, score=classifier_nll),
    "UNDIAL": lambda: UNDIAL(score=classifier_nll),
    "ForgetKL": lambda: ForgetKL(score=classifier_nll),
    "TaskVector": lambda: TaskVector(alpha=1.5, score=classifier_nll),
    "GradDiff+embedding": lambda: GradDiff(retain=EmbeddingDifference("net.1"), score=classifier_nll),
    "GradDiff+ramp": lambda: GradDiff(retain_weight=Ramp(end=0.5, epochs=4), score=classifier_nll),
    "PDU": lambda: PDU(epsilon=0.5, initial_dual=2.0, dual_step_size=0.5, warmup_epochs=1, score=classifier_nll),
    "UGradSL": lambda: UGradSL(),
    "UGradSL+adaptive": lambda: UGradSL(alpha=None, beta=0.3, forget_accuracy_floor=0.0),
    "UGradSLPlus": lambda: UGradSLPlus(p=0.6),
    "NegGradPlus": lambda: NegGradPlus(p=0.5),
    "FineTune": lambda: FineTune(),
    "L1Sparse": lambda: L1Sparse(gamma=1e-3, epochs=3),
    "RandomLabels": lambda: RandomLabels(),
    "SCRUB": lambda: SCRUB(alpha=0.1, gamma=0.5),
    "BadTeacher": lambda: BadTeacher(),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_users_module_unlearns_unchanged(method: str, tmp_path: Path) -> None:
    module = seeded()
    before = nll(module, 16, seed=1).mean()
    run = trainer(METHODS[method](), max_epochs=8)
    run.fit(module, loaders())
    # PDU and the methods with a teacher flatten what is known, or leave it, and this net knows nothing; fine-tuning on
    # other rows does not aim at these. See tests/objectives/test_token_weighted.py and tests/classification.
    if method not in ("PDU", "BadTeacher", "SCRUB", "FineTune", "L1Sparse"):
        assert nll(module, 16, seed=1).mean() > before + 0.1
    assert "training_step" not in vars(module)
    assert run.callback_metrics["unlearn/loss"].isfinite()

    run.save_checkpoint(tmp_path / "unlearned.ckpt")
    loaded = LitNet.load_from_checkpoint(tmp_path / "unlearned.ckpt")
    assert same(loaded, module)


SINGLE = ("accumulate", "clip", "bf16")


def options(kind: str) -> dict[str, Any]:
    return {
        "plain": {},
        "accumulate": {"accumulate_grad_batches": 2},
        "clip": {"gradient_clip_val": 0.1},
        "bf16": {"precision": "bf16-mixed"},
        "all": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    }[kind]


# "all" has each of the others, which are slow tests by themselves.
@pytest.mark.parametrize("kind", ["plain", "all", *(pytest.param(k, marks=pytest.mark.slow) for k in SINGLE)])
@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_and_a_resume_equal_four_bit_for_bit(method: str, kind: str, tmp_path: Path) -> None:
    whole = seeded()
    trainer(METHODS[method](), max_epochs=4, **options(kind)).fit(whole, loaders())

    half = seeded()
    first = trainer(METHODS[method](), max_epochs=2, **options(kind))
    first.fit(half, loaders())
    save_resumable(first, tmp_path / "half.ckpt")
    resumed = LitNet(lr=123.0)  # everything must come from the checkpoint
    trainer(METHODS[method](), max_epochs=4, **options(kind)).fit(
        resumed, loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert same(resumed, whole)
    assert not same(half, whole)


def data(**settings: Any) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(13, seed=1), indexed(7, seed=2), **{"batch_size": 4, **settings})


@pytest.mark.parametrize("reference", ["cache", "snapshot"])
def test_npo_starts_at_the_reference(reference: Any) -> None:
    method, forget = NPO(beta=0.1, score=classifier_nll, reference=reference), logged("unlearn/forget")
    trainer(method, forget, max_steps=3).fit(seeded(DictNet), data())
    assert forget.values[0] == pytest.approx(13.8629436)
    assert forget.values[-1] < forget.values[0]
    assert (set(method.caches) == {"forget"}) == (reference == "cache")


def test_npo_without_a_forget_term_needs_no_forget_rows_and_keeps_no_reference() -> None:
    method = NPO(forget_weight=0.0, refusal_weight=1.0, score=classifier_nll)
    trainer(method).fit(seeded(), {"idk": pairs(8, 1), "retain": pairs(8, 2)})
    assert method.snapshot is None
    assert method.caches == {}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_cache_and_snapshot_train_the_same_weights(precision: Any) -> None:
    found = []
    for reference in ("cache", "snapshot"):
        module = seeded(DictNet)
        method = NPO(score=classifier_nll, reference=reference)  # type: ignore[arg-type]
        trainer(method, max_epochs=3, precision=precision).fit(module, data())
        found.append(weights(module))
    torch.testing.assert_close(found[0], found[1], atol=2e-4 if precision == "bf16-mixed" else 1e-6, rtol=0)


def test_the_step_is_the_formula() -> None:
    module, plain = seeded(), seeded()
    batch = {"forget": next(iter(pairs(4, 1))), "retain": next(iter(pairs(4, 2)))}
    trainer(NPO(beta=0.5, retain_weight=2.0, score=classifier_nll), max_epochs=2).fit(module, loaders(4, 4))
    optimizer = plain.configure_optimizers()
    reference = nll(plain, 4, 1)
    for _ in range(2):
        losses = {role: nn.functional.cross_entropy(plain(x), y, reduction="none") for role, (x, y) in batch.items()}
        optimizer.zero_grad()
        (npo(losses["forget"], reference, beta=0.5).mean() + 2 * losses["retain"].mean()).backward()
        optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain), atol=1e-6, rtol=0)


def test_kl_has_no_gradient_at_the_reference() -> None:
    class OnlyRetain(KLMinimization):
        def forget_loss(self, module: L.LightningModule, forget: Any) -> Tensor:
            return super().forget_loss(module, forget) * 0

    largest = Recorder(on_before_optimizer_step=lambda _, net, *__: max(p.grad.abs().max() for p in net.parameters()))
    trainer(OnlyRetain(score=classifier_nll), largest, max_steps=1).fit(seeded(), loaders())
    assert largest.values[0] < 1e-6


class OwnNorm(nn.Module):
    """Batch normalization of another package, which torch does not know as such."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
        return self.weight * (x - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, OwnNorm])
def test_forget_and_retain_share_one_forward_pass_except_with_batch_norm(norm: Any) -> None:
    calls: list[int] = []

    class Counting(LitNet):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    trainer(SimNPO(score=classifier_nll), max_steps=1).fit(Counting(), loaders())
    assert calls[2:] == [8]  # the first two passes compare the module's own loss with the score

    calls.clear()
    module = Counting()
    module.net.insert(1, norm(16))
    trainer(SimNPO(score=classifier_nll), max_steps=1).fit(module, loaders())
    assert calls[2:] == [4, 4]


def test_the_users_own_loss_serves_gradient_difference() -> None:
    module = seeded()
    before = nll(module, 16, seed=1).mean()
    trainer(GradDiff(score=training_step_loss), max_epochs=4).fit(module, loaders())
    assert nll(module, 16, seed=1).mean() > before + 0.1


def test_training_stops_at_max_forget_nll(caplog: pytest.LogCaptureFixture) -> None:
    module = seeded(lr=0.5)
    run = trainer(GradientAscent(max_forget_nll=3.0, score=classifier_nll), max_epochs=1000)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.fit(module, loaders())
    assert caplog.text.count("The run ends early, at step") == 1
    assert "above max_forget_nll=3." in caplog.text
    assert run.current_epoch < 100
    assert run.callback_metrics["unlearn/forget_nll"] > 3


class Explode(GradDiff):
    """NaN in the loss, or only in its gradient, at the third step."""

    def __init__(self, where: str) -> None:
        super().__init__(score=classifier_nll)
        self.where = where

    def step(self, module: L.LightningModule, batch: Any) -> dict[str, Tensor]:
        parts = super().step(module, batch)
        if module.trainer.global_step == 2:
            zero = parts["loss"] * 0
            parts["loss"] = parts["loss"] + (zero * float("nan") if self.where == "loss" else zero.abs().sqrt())
        return parts


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_the_run_names_the_step_and_keeps_the_last_finite_weights(where: str, tmp_path: Path) -> None:
    good = seeded()
    trainer(GradDiff(score=classifier_nll), max_steps=2).fit(good, loaders())

    module = seeded()
    run = trainer(Explode(where), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match=rf"{where}.* not finite.* step 2 \(epoch 0, batch 2\).*last-finite"):
        run.fit(module, loaders())
    assert same(module, good)
    assert "training_step" not in vars(module)
    saved = LitNet.load_from_checkpoint(tmp_path / "last-finite.ckpt")
    assert same(saved, good)


@pytest.mark.parametrize("role", ["forget", "retain"])
@pytest.mark.parametrize(
    ("accumulate", "batch", "updates", "norm"),
    [(1, 2, 2, nn.BatchNorm1d), (2, 3, 1, nn.BatchNorm1d), (1, 2, 2, OwnNorm)],
)
def test_inputs_that_are_nan_leave_the_statistics_of_the_last_finite_step(
    role: str, accumulate: int, batch: int, updates: int, norm: Any, tmp_path: Path
) -> None:
    """Batch normalization folds what it sees into its running statistics before there is a loss to look at."""

    def normed() -> LitNet:
        module = seeded()
        module.net.insert(1, norm(16))
        return module

    good, module, rows = normed(), normed(), loaders()
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    trainer(GradDiff(score=classifier_nll), max_steps=updates, **options).fit(good, loaders())
    rows[role].dataset.tensors[0][4 * batch] = float("nan")  # type: ignore[attr-defined]
    run = trainer(GradDiff(score=classifier_nll), ModelCheckpoint(tmp_path), enable_checkpointing=True, **options)
    with pytest.raises(FloatingPointError, match=rf"not finite.* step {updates} \(epoch 0, batch {batch}\)"):
        run.fit(module, rows)
    saved = torch.load(tmp_path / "last-finite.ckpt", weights_only=True)["state_dict"]
    assert saved["net.1.running_mean"].isfinite().all()
    assert saved["net.1.running_mean"].any()
    assert same(saved, good.state_dict())
    assert same(module, good)


def test_a_crash_leaves_the_users_training_step() -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("power cut")

    module = seeded()
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(SimNPO(score=classifier_nll), Recorder(on_train_batch_end=crash)).fit(module, loaders())
    assert module.training_step.__func__ is LitNet.training_step  # type: ignore[attr-defined]


def test_dropout_is_off_in_the_reference_and_warned_of() -> None:
    module = seeded(DictNet, dropout=0.5)
    method = NPO(score=classifier_nll)
    with pytest.warns(UserWarning, match="differ from the reference"):
        trainer(method, max_steps=1).fit(module, data())
    assert module.net[2].training


def test_a_row_that_changes_is_an_error() -> None:
    rows = indexed(4, seed=1)

    def change(*_: Any) -> None:
        rows[2]["input"] = rows[2]["input"] + 1e-6

    module = ForgetRetainDataModule(rows, indexed(4, seed=2), batch_size=4)
    with pytest.raises(ValueError, match=r"stale: forget rows with index \[2\]"):
        trainer(NPO(score=classifier_nll), Recorder(on_train_epoch_end=change), max_epochs=2).fit(
            seeded(DictNet), module
        )


def test_the_module_may_be_used_again_without_the_callback() -> None:
    module = seeded()
    trainer(SimNPO(score=classifier_nll)).fit(module, loaders())
    run = trainer(max_epochs=1)
    run.fit(module, pairs(8, seed=3))
    assert "train_loss" in run.callback_metrics


def test_every_public_method_is_covered_here_or_in_a_file_of_its_own() -> None:
    classes = [getattr(lightning_unlearn, name) for name in lightning_unlearn.__all__]
    public = {
        cls.__name__
        for cls in classes
        if inspect.isclass(cls) and issubclass(cls, UnlearnCallback) and not inspect.isabstract(cls)
        # Those of diffusion models have a test of their own each: tests/diffusion.
        if not cls.__module__.startswith("lightning_unlearn.diffusion.")
    }
    covered = {type(make()).__name__ for make in METHODS.values()} | {"IdkNLL"}
    covered |= {"IdkDPO", "KTO", "AltPO"}  # in tests/objectives/test_preference.py
    covered |= {"RMU", "WhosHarryPotter"}  # in tests/language
    covered |= {"BoundaryShrink", "BoundaryExpand"}  # in tests/classification/test_boundary.py
    covered |= {"UNSIR", "DUCK", "CFk", "EUk", "Retrain"}  # each in a file of its own in tests/classification
    covered |= {"InfluenceUnlearning", "SSD", "FisherForgetting", "Amnesiac"}  # edits make no update to resume from
    assert public == covered


class Watched(LitNet):
    """Writes down which batches begin with gradients of the last ones in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.held.append(self.net[0].weight.grad is not None)
        return super().forward(x)


class Looking(Watched):
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.norm = self.net[0].weight.grad


def test_the_last_gradients_are_gone_before_the_forward_pass_but_for_those_that_add_up() -> None:
    module = Watched()
    trainer(GradDiff(score=classifier_nll), accumulate_grad_batches=2, max_epochs=1).fit(module, loaders())
    assert module.held == [False, True, False, True]

    looking = Looking()  # whose own hook must find them
    trainer(GradDiff(score=classifier_nll), max_epochs=1).fit(looking, loaders())
    assert looking.held == [False, True, True, True]
