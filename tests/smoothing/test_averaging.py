"""The mean of the weights over the last updates: which snapshots, and who gets to see it."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as lc
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn import (
    NPO,
    SSD,
    ForgetRetainDataModule,
    GradDiff,
    GradientAscent,
    GradientPenalty,
    LanguageDataModule,
    RandomMask,
    TaskVector,
    UnlearnMonitor,
    UnlearnWeightAveraging,
    classifier_nll,
    training_step_loss,
)
from tests.helpers import Recorder, same, trainer, weights
from tests.tiny_runs import LORA, RAGGED, lm
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, seeded


class Counter(L.LightningModule):
    """A weight that ascent raises by 1 with each update, from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def graddiff(**options: Any) -> GradDiff:
    return GradDiff(score=classifier_nll, **options)


def ascend(steps: int, **options: Any) -> tuple[Counter, UnlearnWeightAveraging]:
    module, average = Counter(), UnlearnWeightAveraging(**options)
    run = trainer(GradientAscent(score=training_step_loss), average, max_epochs=-1, max_steps=steps)
    run.fit(module, {"forget": pairs(4, 1)})
    return module, average


@pytest.mark.parametrize(
    ("steps", "options", "snapshots"),
    [
        (125, {}, [100, 105, 110, 115, 120, 125]),
        (127, {}, [100, 105, 110, 115, 120, 125]),
        (100, {}, [100]),
        (7, {"start_step": 2, "every_n_steps": 2}, [2, 4, 6]),
    ],
)
def test_weights_that_count_their_updates(steps: int, options: dict[str, int], snapshots: list[int]) -> None:
    module, average = ascend(steps, **options)
    assert average.snapshots == snapshots
    assert module.weight.item() == pytest.approx(sum(snapshots) / len(snapshots), abs=1e-12)


def test_a_run_that_is_too_short_says_that_nothing_was_averaged() -> None:
    with (
        pytest.warns(UserWarning, match="nothing will be averaged"),
        pytest.warns(UserWarning, match="averaged nothing"),
    ):
        module, average = ascend(99)
    assert average.snapshots == []
    assert module.weight.item() == 99


def test_a_run_that_is_stopped_early_gets_its_mean() -> None:
    def stop(run: L.Trainer, *_: Any) -> None:
        run.should_stop = run.global_step >= 4

    module, average = Counter(), UnlearnWeightAveraging(2, 1)
    method = GradientAscent(score=training_step_loss)
    with pytest.warns(UserWarning, match="stopped before max_epochs"):
        trainer(method, average, Recorder(on_train_batch_end=stop), max_epochs=9).fit(module, {"forget": pairs(8, 1)})
    assert average.snapshots == [2, 3, 4]
    assert module.weight.item() == 3


# ---- who sees it -----------------------------------------------------------------------------------------------------


def test_checkpoints_hold_live_weights_before_the_first_snapshot_and_the_mean_after_it(tmp_path: Path) -> None:
    saved = lc.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    module, live = seeded(), {}

    def keep(run: L.Trainer, module: LitNet, *_: Any) -> None:
        live[run.global_step] = {k: v.clone() for k, v in module.state_dict().items()}

    start = {k: v.clone() for k, v in module.state_dict().items()}
    callbacks = [Recorder(on_train_batch_end=keep), graddiff(), UnlearnWeightAveraging(3, 2), saved]
    trainer(*callbacks, max_epochs=2, enable_checkpointing=True).fit(module, loaders())
    assert len(live) == 8
    for step in live:
        file = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert not same(file["state_dict"], start)
        if step < 3:
            assert same(file["state_dict"], live[step])
            assert "current_model_state" not in file
            continue
        taken = [live[t] for t in range(3, step + 1, 2)]
        for name, value in file["state_dict"].items():
            torch.testing.assert_close(value, torch.stack([t[name] for t in taken]).mean(0), rtol=0, atol=1e-6)
        assert same(file["current_model_state"], live[step])
        assert file["averaging_state"]["n_averaged"] == len(taken)
    assert same(module, torch.load(tmp_path / "step=8.ckpt", weights_only=True)["state_dict"])


def test_no_tensor_of_the_starting_weights_is_in_a_checkpoint(tmp_path: Path) -> None:
    """Lightning's own callback saves them as the module's weights until its first update."""
    found: dict[str, list[bool]] = {}
    for name, average in {
        "ours": UnlearnWeightAveraging(100),
        "Lightning": lc.EMAWeightAveraging(update_starting_at_step=99),
    }.items():
        module = seeded()
        start = weights(module)
        saved = lc.ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(graddiff(), average, saved, enable_checkpointing=True).fit(module, loaders())
        files = [torch.load(file, weights_only=True)["state_dict"] for file in (tmp_path / name).glob("*.ckpt")]
        found[name] = [torch.equal(torch.cat([v.flatten() for v in state.values()]), start) for state in files]
    assert len(found["ours"]) == 4
    assert not any(found["ours"])
    assert all(found["Lightning"])


def test_validation_and_the_monitor_measure_the_mean_at_the_end() -> None:
    module, seen, monitor = seeded(), [], UnlearnMonitor(score=classifier_nll)
    module.validation_step = lambda *_: seen.append(weights(module))  # type: ignore[method-assign]
    live = Recorder(on_train_batch_end=lambda _, module, *__: weights(module))
    callbacks = [live, graddiff(), monitor, UnlearnWeightAveraging(3, 1)]
    trainer(*callbacks, max_epochs=2, num_sanity_val_steps=0).fit(module, loaders(), pairs(4, 3))
    for step, value in zip((4, 8), seen, strict=True):
        torch.testing.assert_close(value, torch.stack(live.values[2:step]).mean(0), rtol=0, atol=1e-6)
    assert torch.equal(seen[1], weights(module))
    x, y = next(iter(pairs(16, 1, 16)))
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(module.eval()(x), y).item()
    metrics = monitor.history[-1].metrics
    assert any(value == pytest.approx(wanted, rel=1e-5) for value in metrics.values()), metrics


def test_training_goes_on_from_the_live_weights_after_validation() -> None:
    runs = []
    for average in ([], [UnlearnWeightAveraging(2, 1)]):
        module, live = seeded(), Recorder(on_train_batch_end=lambda _, module, *__: weights(module))
        validated = []
        module.validation_step = lambda *_, seen=validated: seen.append(1)  # type: ignore[method-assign]
        trainer(live, graddiff(), *average, max_epochs=2).fit(module, loaders(), pairs(4, 3))
        assert len(validated) == 3
        runs.append(live.values[:-1])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_crash_in_validation_leaves_the_live_weights() -> None:
    module, live = seeded(), Recorder(on_train_batch_end=lambda _, module, *__: weights(module))

    def crash(*_: Any) -> None:
        raise RuntimeError("crash")

    module.validation_step = crash  # type: ignore[method-assign]
    run = trainer(live, graddiff(), UnlearnWeightAveraging(2, 1), max_epochs=2, num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="crash"):
        run.fit(module, loaders(), pairs(4, 3))
    assert torch.equal(weights(module), live.values[-1])


# ---- resume, masks, batch normalization ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3, 5, 8])
def test_a_resumed_run_ends_in_the_same_bits(at: int, tmp_path: Path) -> None:
    def fit(epochs: int, **options: Any) -> tuple[LitNet, UnlearnWeightAveraging]:
        module, average = seeded(DictNet), UnlearnWeightAveraging(3, 2)
        saved = lc.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(graddiff(), average, saved, max_epochs=epochs, enable_checkpointing=True)
        run.fit(module, ForgetRetainDataModule(indexed(16, 1), indexed(16, 2), batch_size=4), **options)
        return module, average

    whole, average = fit(3)
    assert average.snapshots == [3, 5, 7, 9, 11]
    if at == 8:  # the end of a run, where the module has the mean already
        fit(2)
    resumed, again = fit(3, ckpt_path=tmp_path / f"step={at}.ckpt", weights_only=True)
    assert again.snapshots == average.snapshots
    assert same(resumed, whole)


def test_a_checkpoint_of_a_mean_is_not_resumed_without_averaging(tmp_path: Path) -> None:
    saved = lc.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(graddiff(), UnlearnWeightAveraging(3, 2), saved, max_epochs=2, enable_checkpointing=True)
    run.fit(seeded(DictNet), ForgetRetainDataModule(indexed(16, 1), indexed(16, 2), batch_size=4))
    again = trainer(graddiff(), max_epochs=3)
    data = ForgetRetainDataModule(indexed(16, 1), indexed(16, 2), batch_size=4)
    with pytest.raises(MisconfigurationException, match="its state_dict is the mean"):
        again.fit(seeded(DictNet), data, ckpt_path=tmp_path / "step=5.ckpt", weights_only=True)


def test_a_second_fit_goes_on_from_the_live_weights() -> None:
    whole, parts = seeded(), seeded()
    whole.configure_optimizers = parts.configure_optimizers = None  # type: ignore[assignment]
    for module in (whole, parts):
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), lr=0.05)
    trainer(graddiff(), UnlearnWeightAveraging(3, 2), max_epochs=4).fit(whole, loaders())
    average = UnlearnWeightAveraging(3, 2)
    run = trainer(graddiff(), average, max_epochs=2)
    run.fit(parts, loaders())
    run.fit_loop.max_epochs = 4
    run.fit(parts, loaders())
    assert average.snapshots == [3, 5, 7, 9, 11, 13, 15]
    assert same(parts, whole)


@pytest.mark.parametrize("mask_first", [True, False])
def test_frozen_weights_stay_bit_for_bit(mask_first: bool, tmp_path: Path) -> None:
    module, mask, average = seeded(), RandomMask(0.5), UnlearnWeightAveraging(2, 1)
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    saved = lc.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    beside = [mask, average] if mask_first else [average, mask]
    trainer(graddiff(), *beside, saved, max_epochs=3, enable_checkpointing=True).fit(module, loaders())
    states = [dict(module.named_parameters())]
    states += [torch.load(file, weights_only=True)["state_dict"] for file in tmp_path.glob("*.ckpt")]
    assert len(states) == 5
    for state in states:
        assert all(torch.equal(state[key][~live], start[key][~live]) for key, live in mask.masks.items())
        assert not all(torch.equal(state[key], start[key]) for key in start)


class Normed(LitNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(8), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)
        )


def test_statistics_are_those_of_all_retain_batches_under_the_mean(tmp_path: Path) -> None:
    module = seeded(Normed)
    data = loaders()
    data["forget"].dataset.tensors[0].add_(1000.0)  # type: ignore[attr-defined]
    saved = lc.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(graddiff(), UnlearnWeightAveraging(2, 1), saved, max_epochs=2, enable_checkpointing=True).fit(module, data)
    first, linear, second = module.net[0], module.net[1], module.net[2]
    batches = [x for x, _ in data["retain"]]
    assert first.momentum == 0.1
    assert second.num_batches_tracked == len(batches)
    with torch.no_grad():
        hidden = [
            linear(nn.functional.batch_norm(x, None, None, first.weight, first.bias, training=True)) for x in batches
        ]
    for norm, values in ((first, batches), (second, hidden)):
        torch.testing.assert_close(norm.running_mean, torch.stack([v.mean(0) for v in values]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([v.var(0) for v in values]).mean(0))
    assert same(module, torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"])


def test_without_retain_rows_the_running_statistics_are_averaged() -> None:
    module, method = seeded(Normed), GradientAscent(score=classifier_nll)
    seen = Recorder(on_train_batch_end=lambda _, module, *__: module.net[0].running_mean.clone())
    with pytest.warns(UserWarning, match="no retain rows"):
        trainer(seen, method, UnlearnWeightAveraging(2, 1)).fit(module, {"forget": pairs(16, 1)})
    torch.testing.assert_close(module.net[0].running_mean, torch.stack(seen.values[1:]).mean(0))


# ---- where it runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_both_packages_of_lightning(name: str) -> None:
    package = import_module(name)

    class Net(package.LightningModule):
        forward, training_step = LitNet.forward, LitNet.training_step

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 3)

        def configure_model(self) -> None:
            """Lightning's own callback calls it a second time."""
            self.made = getattr(self, "made", 0) + 1

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, average = Net(), UnlearnWeightAveraging(2, 1)
    live = Recorder(on_train_batch_end=lambda _, module, *__: weights(module))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = package.Trainer(callbacks=[live, graddiff(), average], max_epochs=1, accelerator="cpu", **quiet)
    run.fit(module, loaders())
    assert module.made == 1
    torch.testing.assert_close(weights(module), torch.stack(live.values[1:]).mean(0))


def test_beside_a_smoothing_of_the_forget_term() -> None:
    live = Recorder(on_train_batch_end=lambda _, module, *__: weights(module))
    module, plain = seeded(), seeded()
    trainer(live, graddiff(), GradientPenalty(0.1), UnlearnWeightAveraging(2, 1)).fit(module, loaders())
    trainer(graddiff(), UnlearnWeightAveraging(2, 1)).fit(plain, loaders())
    torch.testing.assert_close(weights(module), torch.stack(live.values[1:]).mean(0), rtol=0, atol=1e-6)
    assert not torch.allclose(weights(module), weights(plain), atol=1e-4)


def test_adapters_of_a_language_model(tiny_lm: Path) -> None:
    live = Recorder(on_train_batch_end=lambda _, module, *__: weights(module))
    module = lm(tiny_lm, lora=LORA)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    rows = LanguageDataModule(RAGGED[:6], RAGGED[6:], batch_size=2, seed=3)
    trainer(live, NPO(), UnlearnWeightAveraging(1, 1), limit_val_batches=0).fit(module, rows)
    torch.testing.assert_close(weights(module), torch.stack(live.values).mean(0), rtol=0, atol=1e-6)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert all(".lora_" in name for name in moved)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([TaskVector(score=classifier_nll), UnlearnWeightAveraging()], "TaskVector goes the other way"),
        ([SSD(), UnlearnWeightAveraging()], "SSD edits the weights once"),
        ([graddiff(), UnlearnWeightAveraging(), lc.EMAWeightAveraging()], "one average"),
        ([graddiff(), UnlearnWeightAveraging(), lc.StochasticWeightAveraging(1e-2)], "one average"),
    ],
)
def test_refused_by_name(callbacks: list[Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(*callbacks).fit(seeded(), loaders())


@pytest.mark.parametrize("options", [{"start_step": 0}, {"every_n_steps": 0}])
def test_numbers_below_1_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, but got 0"):
        UnlearnWeightAveraging(**options)  # type: ignore[arg-type]
