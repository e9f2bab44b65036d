"""Lightning's own flags, tuners and callbacks beside unlearning: right, or refused by name before a weight moves."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as lc
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_unlearn import (
    DUCK,
    NPO,
    SCRUB,
    SSD,
    WAGLE,
    ForgetRetainDataModule,
    GradDiff,
    RandomMask,
    UnlearnMonitor,
    classifier_nll,
)
from tests.helpers import Recorder, same, trainer
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, seeded


def npo(**options: Any) -> NPO:
    return NPO(score=classifier_nll, **options)


def graddiff() -> GradDiff:
    return GradDiff(score=classifier_nll)


def rows(batch_size: int = 4) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(16, 1), indexed(16, 2), batch_size=batch_size)


METHODS: dict[str, Callable[[], Any]] = {"GradDiff": graddiff, "NPO": npo}


# ---- what users turn on ----------------------------------------------------------------------------------------------

FLAGS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate_grad_batches": 2},
    "clip by value": {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    "clip by norm": {"gradient_clip_val": 1.0},
    "detect anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": "warn"},
    "half of the batches": {"limit_train_batches": 0.5},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
    "overfit": {"overfit_batches": 2},
    "barebones": {"barebones": True, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None,
                  "enable_model_summary": None},
    "fast_dev_run": {"fast_dev_run": 2},
    "max_time": {"max_time": "00:00:05:00"},
    "max_steps": {"max_steps": 3, "max_epochs": -1},
    "min_epochs": {"min_epochs": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "profiler": {"profiler": "simple"},
    "no sanity check": {"num_sanity_val_steps": 0},
    "inference_mode off": {"inference_mode": False},
}  # fmt: skip
CALLBACKS: dict[str, Callable[[Path], Any]] = {
    "SWA": lambda _: lc.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    "EMA": lambda _: lc.EMAWeightAveraging(decay=0.9),
    "WeightAveraging": lambda _: lc.WeightAveraging(),
    "Timer": lambda _: lc.Timer(),
    "GradientAccumulationScheduler": lambda _: lc.GradientAccumulationScheduler({1: 2}),
    "OnExceptionCheckpoint": lambda folder: lc.OnExceptionCheckpoint(folder),
    "LearningRateMonitor": lambda _: lc.LearningRateMonitor(),
    "DeviceStatsMonitor": lambda _: lc.DeviceStatsMonitor(),
    "ModelSummary": lambda _: lc.ModelSummary(),
    "BackboneFinetuning": lambda _: lc.BackboneFinetuning(1, lambda _: 1.0, backbone_initial_lr=0.1, verbose=False),
}


class Backbone(LitNet):
    """The same net, with a backbone that a schedule thaws."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).relu())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name: str) -> None:
    module = seeded()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    trainer(npo(), **({"max_epochs": 2} | FLAGS[name])).fit(module, loaders())
    assert not same(module, start)
    assert "training_step" not in module.__dict__


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Backbone()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    callback = CALLBACKS[name](tmp_path)
    saves = isinstance(callback, lc.Checkpoint)
    run = trainer(
        npo(), callback, max_epochs=3, logger=CSVLogger(tmp_path), log_every_n_steps=1, enable_checkpointing=saves
    )
    run.fit(module, loaders())
    assert not same(module, start)
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert not any(
        torch.equal(value, weight)
        for value in _tensors({k: v for k, v in torch.load(tmp_path / "end.ckpt", weights_only=True).items()})
        for weight in start.values()
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [t for part in value.values() for t in _tensors(part)]
    if isinstance(value, (list, tuple)):
        return [t for part in value for t in _tensors(part)]
    return [value] if isinstance(value, Tensor) and value.dim() else []


# ---- tuners ----------------------------------------------------------------------------------------------------------


class Rate(LitNet):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


TUNED: dict[str, Callable[[], list[Any]]] = {
    "GradDiff": lambda: [graddiff()],
    "NPO": lambda: [npo()],
    "SCRUB": lambda: [SCRUB()],
    "DUCK": lambda: [DUCK(target_accuracy=None)],
    "NPO and a mask": lambda: [npo(), RandomMask(0.5)],
    "NPO and a monitor": lambda: [npo(), UnlearnMonitor(score=classifier_nll)],
}


@pytest.mark.parametrize("name", TUNED)
def test_the_learning_rate_finder_tries_and_leaves_no_trace(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Rate(lr=0.1)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    seen: list[Any] = []
    made = TUNED[name]()

    def look(run: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        seen.append((same(module, start), made[0].snapshot, run.global_step))

    finder = lc.LearningRateFinder(num_training_steps=6, max_lr=0.5, early_stop_threshold=None)
    trainer(finder, *made, Recorder(on_train_start=look), default_root_dir=tmp_path).fit(module, loaders())
    ((untouched, snapshot, step),) = seen
    assert untouched
    assert step == 0
    if snapshot is not None:
        assert all(torch.equal(value, start[key]) for key, value in snapshot.values.items())
    assert not same(module, start)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["GradDiff", "NPO"])
def test_the_tuner_before_fit(name: str, tmp_path: Path) -> None:
    module = Rate(lr=0.1)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    run = trainer(METHODS[name](), default_root_dir=tmp_path)
    Tuner(run).lr_find(module, train_dataloaders=loaders(), num_training=5, min_lr=1e-3, max_lr=0.1)
    assert same(module, start)
    assert "training_step" not in module.__dict__
    run.fit(module, loaders())
    assert not same(module, start)


@pytest.mark.parametrize("name", ["GradDiff", "NPO"])
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_finder(name: str, mode: str, tmp_path: Path) -> None:
    module, data = DictNet(), rows(2)
    finder = lc.BatchSizeFinder(mode, steps_per_trial=1, max_trials=2, init_val=2)
    trainer(finder, METHODS[name](), default_root_dir=tmp_path).fit(module, data)
    assert data.batch_size > 2


# ---- layers that thaw, are pruned or averaged ------------------------------------------------------------------------


def test_a_layer_that_thaws_is_in_the_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, method = Backbone(), npo(reference="snapshot")
    start = {key: value.clone() for key, value in module.state_dict().items()}
    thaw = lc.BackboneFinetuning(1, lambda _: 1.0, backbone_initial_lr=0.1, verbose=False)
    trainer(method, thaw, max_epochs=3).fit(module, loaders())
    assert not torch.equal(module.backbone.weight, start["backbone.weight"])
    assert method.snapshot is not None
    assert method.snapshot.values.keys() == start.keys()
    assert all(torch.equal(value, start[key]) for key, value in method.snapshot.values.items())


def test_a_mask_refuses_layers_that_thaw() -> None:
    thaw = lc.BackboneFinetuning(1, lambda _: 1.0, backbone_initial_lr=0.1, verbose=False)
    module = Backbone()
    backbone = module.backbone.weight.clone()
    with pytest.raises(MisconfigurationException, match=r"train only since RandomMask made its mask"):
        trainer(npo(), RandomMask(0.5), thaw, max_epochs=3).fit(module, loaders())
    assert torch.equal(module.backbone.weight, backbone)


def test_pruning() -> None:
    module = seeded()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    pruning = {"pruning_fn": "l1_unstructured", "amount": 0.3}
    with pytest.raises(MisconfigurationException, match=r"ModelPruning.*reference='cache'"):
        trainer(npo(), lc.ModelPruning(**pruning), max_epochs=3).fit(module, loaders())
    with pytest.raises(MisconfigurationException, match="ModelPruning sets weights to zero that RandomMask keeps"):
        trainer(graddiff(), RandomMask(0.5), lc.ModelPruning(**pruning), max_epochs=3).fit(module, loaders())
    assert same(module, start)
    trainer(graddiff(), lc.ModelPruning(**pruning), max_epochs=2).fit(module, loaders())
    assert (module.net[0].weight == 0).float().mean() > 0.1
    cached = DictNet()
    trainer(npo(reference="cache"), lc.ModelPruning(**pruning), max_epochs=2).fit(cached, rows())
    assert (cached.net[0].weight == 0).float().mean() > 0.1


def test_pruned_in_the_midst_by_hand() -> None:
    def cut(run: L.Trainer, module: Any, *_: Any) -> None:
        if run.global_step == 2:
            prune.l1_unstructured(module.net[0], "weight", 0.5)

    with pytest.raises(MisconfigurationException, match=r"'net\.0\.weight', have other names"):
        trainer(npo(), Recorder(on_train_batch_end=cut)).fit(seeded(), loaders())


@pytest.mark.parametrize("kind", ["pruned", "weight_norm", "orthogonal"])
@pytest.mark.parametrize("beside", [[], [RandomMask]], ids=["alone", "mask"])
def test_parametrized_before_fit(kind: str, beside: list[Any]) -> None:
    module = seeded()
    layer = module.net[0]
    if kind == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    else:
        getattr(parametrizations, kind)(layer)
    zero = (layer.weight == 0).clone()
    start = layer.weight.clone()
    method = npo()
    trainer(method, *(mask(0.5) for mask in beside), max_epochs=2).fit(module, loaders())
    assert method.snapshot is not None
    with method.snapshot.active(module):
        assert torch.allclose(layer.weight if kind != "pruned" else layer.weight_orig * layer.weight_mask, start)
    if kind == "pruned":
        layer(torch.ones(1, 8))
        assert torch.equal(layer.weight == 0, zero)


@pytest.mark.parametrize("mask", [RandomMask, WAGLE])
@pytest.mark.parametrize("name", ["SWA", "EMA", "WeightAveraging"])
def test_averages_hold_frozen_weights_bit_for_bit(mask: Any, name: str, tmp_path: Path) -> None:
    module = seeded()
    start = {key: value.detach().clone() for key, value in module.named_parameters()}
    frozen = mask(density=0.5)
    saved = lc.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    run = trainer(npo(), frozen, CALLBACKS[name](tmp_path), saved, max_epochs=4, enable_checkpointing=True)
    run.fit(module, loaders())
    states = [dict(module.named_parameters())]
    states += [torch.load(file, weights_only=True)["state_dict"] for file in tmp_path.glob("*.ckpt")]
    assert len(states) > 3
    for state in states:
        assert all(torch.equal(state[key][~live], start[key][~live]) for key, live in frozen.masks.items())


# ---- several fits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GradDiff", "NPO", "DUCK", "mask", "monitor"])
def test_a_second_fit_with_more_epochs_goes_on(name: str) -> None:
    made: dict[str, Callable[[], list[Any]]] = {
        "GradDiff": lambda: [graddiff()],
        "NPO": lambda: [npo()],
        "DUCK": lambda: [DUCK(target_accuracy=None)],
        "mask": lambda: [npo(), RandomMask(0.5)],
        "monitor": lambda: [npo(), UnlearnMonitor(score=classifier_nll)],
    }
    whole, parts = seeded(Rate), seeded(Rate)
    start = {key: value.clone() for key, value in parts.state_dict().items()}
    trainer(*made[name](), max_epochs=4).fit(whole, loaders())
    callbacks = made[name]()
    run = trainer(*callbacks, max_epochs=2)
    run.fit(parts, loaders())
    run.fit_loop.max_epochs = 4
    run.fit(parts, loaders())
    assert same(parts, whole)  # SGD without momentum has no state to lose
    if callbacks[0].snapshot is not None:
        assert all(torch.equal(value, start[key]) for key, value in callbacks[0].snapshot.values.items())
    if name == "monitor":
        assert [e.step for e in callbacks[1].history] == [0, 4, 8, 12, 16]


def test_one_callback_in_two_trainers_begins_anew() -> None:
    method, monitor = npo(), UnlearnMonitor(score=classifier_nll)
    for _ in range(2):
        module = seeded()
        start = {key: value.clone() for key, value in module.state_dict().items()}
        trainer(method, monitor).fit(module, loaders())
        assert method.snapshot is not None
        assert all(torch.equal(value, start[key]) for key, value in method.snapshot.values.items())
        assert [e.step for e in monitor.history] == [0, 4]


def test_a_complete_run_says_so(tmp_path: Path) -> None:
    module, run = seeded(), trainer(graddiff())
    run.fit(module, loaders())
    run.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(MisconfigurationException, match="the run was complete already"):
        run.fit(module, loaders())
    with pytest.raises(MisconfigurationException, match="the run was complete already"):
        trainer(graddiff()).fit(seeded(), loaders(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)


# ---- runs that change nothing ----------------------------------------------------------------------------------------


class ManualInSetup(LitNet):
    def setup(self, stage: str) -> None:
        self.automatic_optimization = False


class ManualInFitStart(LitNet):
    def on_fit_start(self) -> None:
        self.automatic_optimization = False


class NoOptimizer(LitNet):
    def configure_optimizers(self) -> None:  # type: ignore[override]
        return None


class OtherOptimizer(LitNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)


class NoRate(LitNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class WarmsUp(LitNet):
    """A rate that is 0 at every step of a short run."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch < 5 else 1.0)]


class Replaces(LitNet):
    """Its optimizer step does nothing."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()


NOTHING: dict[type[LitNet], str] = {
    ManualInSetup: "optimizes manually",
    ManualInFitStart: "optimizes manually",
    NoOptimizer: "gives no optimizer",
    OtherOptimizer: "holds no weight of the module",
}


@pytest.mark.parametrize("kind", NOTHING, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_changes_nothing_raises(kind: type[LitNet], name: str) -> None:
    module = kind()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=NOTHING[kind]):
        trainer(METHODS[name]()).fit(module, loaders())
    assert same(module, start)


@pytest.mark.parametrize("kind", [NoRate, WarmsUp, Replaces])
def test_a_run_whose_steps_change_nothing_warns(kind: type[LitNet]) -> None:
    with pytest.warns(UserWarning, match="no weight has changed"):
        trainer(npo()).fit(kind(), loaders())


def test_weights_that_freeze_raise() -> None:
    module = LitNet()
    module.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="requires a gradient"):
        trainer(graddiff()).fit(module, loaders())


# ---- monitors --------------------------------------------------------------------------------------------------------


def test_two_monitors_in_a_run(tmp_path: Path) -> None:
    pair = [UnlearnMonitor(score=classifier_nll), UnlearnMonitor(score=classifier_nll, limit=4)]
    logger = CSVLogger(tmp_path)
    run = trainer(npo(), *pair, max_epochs=2, logger=logger, log_every_n_steps=1)
    run.fit(seeded(), loaders())
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert [len(monitor.history) for monitor in pair] == [3, 3]
    for monitor, prefix in zip(pair, ("eval/", "eval/2/"), strict=True):
        assert run.callback_metrics[f"{prefix}forget_nll"].item() == pytest.approx(
            monitor.history[-1].metrics["forget_nll"]
        )
    states = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert sum("UnlearnMonitor" in key for key in states) == 2


@pytest.mark.parametrize("first", ["monitor", "stopping"])
def test_early_stopping_and_checkpoints_by_what_a_monitor_measures(first: str, tmp_path: Path) -> None:
    monitor, stopping = UnlearnMonitor(2, score=classifier_nll), lc.EarlyStopping("eval/forget_nll", mode="max")
    saved = lc.ModelCheckpoint(tmp_path, monitor="eval/retain_nll", save_top_k=1)
    order = [monitor, stopping] if first == "monitor" else [stopping, monitor]
    trainer(npo(), *order, saved, max_epochs=4, enable_checkpointing=True).fit(seeded(), loaders())
    assert saved.best_model_score is not None
    assert stopping.best_score.isfinite()


def test_a_monitor_that_measures_nothing_says_so() -> None:
    monitor = UnlearnMonitor(score=classifier_nll)
    with pytest.warns(UserWarning, match="UnlearnMonitor has nothing to measure"):
        trainer(monitor).fit(seeded(), pairs(8, seed=1))


# ---- ends of runs ----------------------------------------------------------------------------------------------------


def test_ctrl_c_names_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    def press(run: L.Trainer, *_: Any) -> None:
        if run.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    saved = lc.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    module, before = seeded(), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
    try:
        with caplog.at_level("INFO"), pytest.raises(SystemExit):
            trainer(npo(), saved, Recorder(on_train_batch_end=press), enable_checkpointing=True).fit(module, loaders())
    finally:
        signal.signal(signal.SIGINT, before)
    said = caplog.text + capsys.readouterr().err
    assert "last.ckpt" in said
    assert "ckpt_path" in said
    assert "training_step" not in module.__dict__


def test_an_edit_without_effect_warns() -> None:
    class Nothing(SSD):
        def edit(self, *_: Any) -> None:
            pass

    with pytest.warns(UserWarning, match="has changed no weight"):
        trainer(Nothing()).fit(seeded(), loaders())


def test_no_warning_in_an_ordinary_run() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(NPO|unlearn|forget).*")
        trainer(npo(), max_epochs=3).fit(seeded(), loaders())
