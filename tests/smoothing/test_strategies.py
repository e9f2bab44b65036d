"""Runs whose forget term is smoothed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    NPO,
    SAM,
    SOUL,
    ForgetTerm,
    GradDiff,
    GradientAscent,
    IdkNLL,
    LanguageDataModule,
    QuantizationAware,
    RandomizedSmoothing,
    RandomMask,
    Smoothed,
    SmoothingStrategy,
    Sophia,
    TaskVector,
    UnlearnCallback,
    classifier_nll,
    training_step_loss,
)
from lightning_unlearn.core.distributed import checksums
from lightning_unlearn.functional import round_weight
from lightning_unlearn.functional.quantization import QUANTIZATION_SCHEMES
from tests.helpers import Recorder, bits, same, trainer, weights
from tests.tiny_runs import CASES, RAGGED, SgdLM
from tests.user_module import LitNet, loaders, pairs, seeded

STRATEGIES = {
    "SAM": lambda: SAM(rho=0.05),
    "ASAM": lambda: SAM(rho=0.5, adaptive=True),
    "RandomizedSmoothing": lambda: RandomizedSmoothing(sigma=0.01),
    "QuantizationAware": lambda: QuantizationAware(),
}
PASSES = {"SAM": 2, "ASAM": 2, "RandomizedSmoothing": 3, "QuantizationAware": 2}
FORGET, RETAIN = pairs(16, seed=1), pairs(16, seed=2)


def fit(*beside: Any, module: L.LightningModule | None = None, data: Any = None, **options: Any) -> Any:
    """Unlearn with GradDiff, unless another objective is given."""
    objectives = [] if any(isinstance(c, UnlearnCallback) for c in beside) else [GradDiff(score=classifier_nll)]
    module = module or seeded()
    run = trainer(*objectives, *beside, **options)
    run.fit(module, data or loaders())
    return module, run


def ascent(module: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return -F.cross_entropy(module(x), y)


def gradient(module: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


# ---- the update ------------------------------------------------------------------------------------------------------


def test_an_update_has_the_forget_gradient_of_perturbed_and_the_retain_gradient_of_own_weights() -> None:
    module, run = fit(SAM(rho=0.05), max_steps=1, limit_train_batches=1)
    by_hand, (forget, retain) = seeded(), (next(iter(loader)) for loader in (FORGET, RETAIN))
    start, kept = weights(by_hand), gradient(by_hand, -ascent(by_hand, retain))
    here = ascent(by_hand, forget)
    g = gradient(by_hand, here)
    nn.utils.vector_to_parameters(start + 0.05 * g / g.norm(), by_hand.parameters())
    there = ascent(by_hand, forget)
    update = gradient(by_hand, there) + kept + 0.1 * start  # weight decay
    torch.testing.assert_close(weights(module), start - 0.05 * update)
    logged = run.callback_metrics
    assert logged["smooth/grad_norm"].item() == pytest.approx(g.norm().item(), rel=1e-5)
    assert logged["smooth/perturbed_loss"].item() == pytest.approx(there.item(), rel=1e-5)
    assert logged["smooth/sharpness"].item() == pytest.approx((there - here).item(), abs=1e-6)
    assert logged["smooth/sharpness"] > 0
    assert logged["unlearn/forget"].item() == pytest.approx(here.item(), rel=1e-5)
    total = logged["smooth/perturbed_loss"] + logged["unlearn/retain"]
    assert logged["unlearn/loss"].item() == pytest.approx(total.item(), rel=1e-5)


class Reads(Recorder):
    """Counts forward passes by what they read, and keeps a checksum of the weights of each."""

    def __init__(self) -> None:
        super().__init__(on_fit_start=lambda run, module: module.register_forward_pre_hook(self._read) and None)
        self.forget: list[dict[str, float]] = []
        self.retain: list[dict[str, float]] = []
        self.before: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows = batch["forget"][0]
        self.before.append(checksums(pl_module))

    def _read(self, module: Any, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            return  # a check before the first update
        read = self.forget if torch.equal(inputs[0], self.rows) else self.retain
        read.append(checksums(module))


@pytest.mark.parametrize("name", STRATEGIES)
def test_so_many_passes_read_the_forget_rows_and_the_retain_rows_see_the_weights_as_they_are(name: str) -> None:
    reads = Reads()
    fit(STRATEGIES[name](), reads)
    assert len(reads.forget) == 4 * PASSES[name]
    assert reads.retain == reads.before  # one a batch
    moved = [found not in reads.before for found in reads.forget]
    own = [] if name == "RandomizedSmoothing" else [False]
    assert moved == (own + [True] * (PASSES[name] - len(own))) * 4


@pytest.mark.parametrize("strategy", [SAM(rho=0.0), RandomizedSmoothing(sigma=0.0)])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}])
def test_smoothing_of_no_extent_changes_nothing(strategy: Any, options: dict[str, Any]) -> None:
    plain, _ = fit(GradDiff(score=training_step_loss), **options)
    smoothed, _ = fit(GradDiff(score=training_step_loss), strategy, **options)
    assert torch.equal(weights(smoothed), weights(plain))


OBJECTIVES = ["AltPO-snapshot", "CEU", "GradDiff-embedding", "GradDiff-refusal", "KTO", "NPO-snapshot-kl", "PDU"]
OBJECTIVES += ["UNDIAL"]


def fit_lm(folder: Path, *callbacks: Any, **options: Any) -> SgdLM:
    torch.manual_seed(0)
    module = SgdLM(str(folder), lr=0.1, **options.pop("model", {}))
    data = LanguageDataModule(RAGGED[:2], RAGGED[6:], batch_size=2, seed=3)
    trainer(*callbacks, **({"limit_val_batches": 0} | options)).fit(module, data)
    return module


@pytest.mark.parametrize("case", OBJECTIVES)
def test_the_forget_term_reads_all_it_needs(tiny_lm: Path, case: str) -> None:
    """Without extent the terms add up to what they are together; with some, they do not.

    SimNPO and SatImp are not among these: their gradient is next to nothing in a model that knows no row.
    """
    make = CASES[case].make
    plain = weights(fit_lm(tiny_lm, make(tiny_lm)))
    torch.testing.assert_close(weights(fit_lm(tiny_lm, make(tiny_lm), SAM(rho=0.0))), plain, atol=5e-6, rtol=0)
    assert (weights(fit_lm(tiny_lm, make(tiny_lm), SAM(rho=0.5))) - plain).abs().max() > 1e-5


def test_without_a_retain_term_the_smoothed_forget_term_is_the_loss() -> None:
    module, run = fit(GradientAscent(score=classifier_nll), SAM(rho=0.05), data={"forget": FORGET}, max_steps=1)
    assert run.callback_metrics["unlearn/loss"] == run.callback_metrics["smooth/perturbed_loss"]
    assert (weights(module) - weights(seeded())).abs().max() > 1e-4


@pytest.mark.parametrize("strategy", [RandomizedSmoothing(sigma=0.05), None])
def test_two_accumulated_batches_are_one_of_twice_the_size(strategy: Any) -> None:
    """SAM differs by design: each batch has a perturbation of its own."""
    beside = [strategy] if strategy else []
    whole = {"forget": pairs(16, 1, batch_size=8), "retain": pairs(16, 2, batch_size=8)}
    once, _ = fit(*beside, data=whole)
    twice, _ = fit(*beside, accumulate_grad_batches=2)
    torch.testing.assert_close(weights(twice), weights(once), atol=1e-6, rtol=0)


def test_gradients_of_earlier_batches_of_a_window_stay() -> None:
    """With a perturbation that does not matter, SAM accumulates what plain training accumulates."""
    plain, _ = fit(accumulate_grad_batches=4)
    smoothed, _ = fit(SAM(rho=1e-9), accumulate_grad_batches=4)
    torch.testing.assert_close(weights(smoothed), weights(plain), atol=1e-6, rtol=0)


def test_a_perturbation_at_quantised_weights_leaves_head_and_embeddings(tiny_lm: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    module = SgdLM(str(tiny_lm), lr=0.1)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}

    def look(*_: Any) -> None:
        if module._trainer is not None and module.trainer.training:
            seen.append({name: p.detach().clone() for name, p in module.named_parameters()})

    module.model.register_forward_pre_hook(look)
    data = LanguageDataModule(RAGGED[:2], RAGGED[6:], batch_size=2)
    run = trainer(GradDiff(), QuantizationAware("int4"), max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    quantised, own = seen[-2:]
    for name, value in start.items():
        assert torch.equal(own[name], value)
        rounds = any(part in name for part in ("proj", "mlp"))
        expected = round_weight(value, QUANTIZATION_SCHEMES["int4"]) if rounds else value
        assert torch.equal(quantised[name], expected), name


# ---- what stays as it is ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*no weight has changed")
def test_all_passes_of_a_step_have_the_same_dropout_mask_and_steps_have_others() -> None:
    sharpness = Recorder(on_train_batch_end=lambda run, *_: run.callback_metrics["smooth/sharpness"].item())
    losses = Recorder(on_train_batch_end=lambda run, *_: run.callback_metrics["unlearn/forget"].item())
    module = seeded(dropout=0.5, lr=0.0)
    x, y = next(iter(FORGET))
    one = DataLoader(TensorDataset(x.repeat(4, 1), y.repeat(4)), batch_size=len(x))
    torch.manual_seed(1)
    fit(GradientAscent(score=classifier_nll), SAM(rho=1e-6), sharpness, losses, module=module, data={"forget": one})
    assert max(map(abs, sharpness.values)) < 1e-5
    assert len(set(losses.values)) == 4


class BatchNormNet(LitNet):
    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:.*no weight has changed")
def test_perturbed_passes_do_not_move_running_statistics() -> None:
    plain, _ = fit(module=seeded(BatchNormNet))
    sam, _ = fit(SAM(rho=0.5), module=seeded(BatchNormNet))
    assert same(sam, plain)
    noisy, _ = fit(RandomizedSmoothing(0.5), module=seeded(BatchNormNet))
    norm = noisy.net[1]
    assert norm.num_batches_tracked == 4  # retain rows alone
    assert plain.net[1].num_batches_tracked == 8


def test_frozen_weights_stay() -> None:
    module = seeded()
    module.net[0].requires_grad_(False)
    start = module.net[0].weight.detach().clone()
    fit(SAM(rho=0.5), module=module)
    assert torch.equal(bits(module.net[0].weight), bits(start))


def test_what_the_module_logs_is_of_its_own_weights() -> None:
    """Its training_step is the score, and runs at perturbed weights too."""
    logged = []
    for beside in ([], [SAM(rho=0.5)]):
        objective = GradientAscent(score=training_step_loss)
        _, run = fit(objective, *beside, data={"forget": FORGET}, max_steps=1)
        logged.append(run.callback_metrics["train_loss"].item())
    assert logged[0] == logged[1]


@pytest.mark.parametrize("wrong", ["raises", "nan"])
def test_weights_are_put_back_when_a_perturbed_pass_fails(wrong: str, tmp_path: Path) -> None:
    calls: list[int] = []
    module = seeded()
    start = {name: value.clone() for name, value in module.state_dict().items()}

    def score(module: LitNet, batch: Any) -> Tensor:
        calls.extend([1] * torch.is_grad_enabled())
        if len(calls) == 2 and wrong == "raises":
            raise RuntimeError("out of memory")
        nll = classifier_nll(module, batch)
        return nll * float("nan") if len(calls) == 2 else nll

    run = trainer(
        GradDiff(score=score), SAM(rho=0.5), max_steps=1, enable_checkpointing=True, default_root_dir=tmp_path
    )
    with pytest.raises((RuntimeError, FloatingPointError), match=r"out of memory|the loss is not finite"):
        run.fit(module, loaders())
    assert same(module.state_dict(), start)
    assert all(parameter.grad is None for parameter in module.parameters())
    for path in tmp_path.rglob("*.ckpt"):
        assert same(torch.load(path, weights_only=False)["state_dict"], start)
    after, _ = fit(module=module, max_steps=1)  # no smoothing is left behind
    plain, _ = fit(max_steps=1)
    assert same(after, plain)


class LooksFar(SmoothingStrategy):
    """Reads the forget term where the rows are very unlikely, and takes no notice."""

    def smooth(self, term: ForgetTerm) -> Smoothed:
        here = term.gradient()
        with term.at([-20 * p for p in term.parameters]):
            there = term.gradient()
        return Smoothed(here.value, here.gradients, here.parts, {"perturbed_loss": there.value})


def test_the_likelihood_at_other_weights_does_not_end_the_run() -> None:
    _, run = fit(GradDiff(max_forget_nll=3.0, score=classifier_nll), LooksFar())
    assert run.callback_metrics["smooth/perturbed_loss"] < -3
    assert run.global_step == 4


# ---- beside other things ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SAM", "RandomizedSmoothing"])
def test_bf16_passes_read_the_perturbed_weights(name: str) -> None:
    """Autocast keeps casts of weights, which perturbed ones must not be taken for."""
    reference, run = fit(STRATEGIES[name](), max_steps=2)
    mixed, half = fit(STRATEGIES[name](), max_steps=2, precision="bf16-mixed")
    moved = (weights(reference) - weights(seeded())).abs().max()
    assert (weights(mixed) - weights(reference)).abs().max() < 0.05 * moved
    for key, value in run.callback_metrics.items():
        assert half.callback_metrics[key].item() == pytest.approx(value.item(), rel=0.05, abs=0.01), key
    if name == "SAM":
        assert half.callback_metrics["smooth/sharpness"] > 0.5 * run.callback_metrics["smooth/sharpness"]


class SophiaNet(LitNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Sophia(self.parameters(), lr=1e-2, rho=1.0)


def test_a_mask_and_curvature_work_beside_it() -> None:
    mask = RandomMask(density=0.3)
    module, run = fit(SAM(rho=0.05), mask, SOUL(every_n_steps=2), module=seeded(SophiaNet))
    start = dict(seeded(SophiaNet).named_parameters())
    for name, parameter in module.named_parameters():
        frozen = ~mask.masks[name]
        assert torch.equal(bits(parameter)[frozen], bits(start[name])[frozen])
    assert (weights(module) - weights(seeded(SophiaNet))).abs().max() > 1e-4
    assert "soul/curvature_mean" in run.callback_metrics


def test_the_other_package_of_lightning_trains_the_same_weights() -> None:
    package = import_module("pytorch_lightning")

    class Net(package.LightningModule):
        training_step, configure_optimizers, forward = (
            LitNet.training_step,
            LitNet.configure_optimizers,
            LitNet.forward,
        )

        def __init__(self) -> None:
            super().__init__()
            self.hparams["lr"] = 0.05
            self.net = seeded().net

    other = Net()
    run = package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradDiff(score=classifier_nll), SAM(rho=0.05)],
    )
    run.fit(other, loaders())
    assert torch.equal(weights(other), weights(fit(SAM(rho=0.05))[0]))


def test_gradient_checkpointing_changes_nothing(tiny_lm: Path) -> None:
    saved = {"model": {"gradient_checkpointing": True}}
    one, other = (weights(fit_lm(tiny_lm, NPO(), SAM(rho=0.1), **options)) for options in ({}, saved))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def half_way(path: Path, *beside: Any) -> LitNet:
    """Train two epochs, and keep a checkpoint of the first."""

    def save(run: L.Trainer, module: L.LightningModule) -> None:
        if run.current_epoch == 0:
            run.save_checkpoint(path)

    objective = GradDiff(score=classifier_nll, keep_reference=True)
    return fit(objective, *beside, Recorder(on_train_epoch_end=save), max_epochs=2)[0]


@pytest.mark.parametrize("name", ["SAM", "RandomizedSmoothing"])
def test_a_resumed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    whole, resumed = half_way(path, STRATEGIES[name]()), seeded()
    trainer(GradDiff(score=classifier_nll), STRATEGIES[name](), max_epochs=2).fit(resumed, loaders(), ckpt_path=path)
    assert same(resumed, whole)


# ---- refusals --------------------------------------------------------------------------------------------------------


class SparseNet(LitNet):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 2, sparse=True)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda: [GradDiff(score=classifier_nll), SAM(), RandomizedSmoothing()], "one smoothing of its forget term"),
        (lambda: [SAM()], "but the run has none. Add one, such as NPO()"),
        (lambda: [IdkNLL(score=classifier_nll), SAM()], "IdkNLL has no forget term, whose weight is 0"),
        (lambda: [TaskVector(score=classifier_nll), SAM()], "SAM smooths a forget term, but TaskVector"),
    ],
)
def test_what_can_not_be_smoothed_is_refused(callbacks: Callable[[], list[Any]], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(*callbacks()).fit(seeded(), loaders())


def test_sparse_gradients_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"sparse gradients of words. Make the embedding"):
        fit(SAM(), module=seeded(SparseNet))


def test_a_run_that_was_not_smoothed_is_not_resumed_with_smoothing(tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    half_way(path)
    with pytest.raises(MisconfigurationException, match="of an unlearning run without SAM"):
        trainer(GradDiff(score=classifier_nll), SAM(), max_epochs=2).fit(seeded(), loaders(), ckpt_path=path)


def test_adapters_are_not_quantised(tiny_lm: Path) -> None:
    lora = {"lora": {"r": 2, "target_modules": "all-linear"}}
    with pytest.raises(MisconfigurationException, match="the run trains adapters, such as"):
        fit_lm(tiny_lm, NPO(), QuantizationAware(), model=lora)
