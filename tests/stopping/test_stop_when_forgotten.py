"""Runs that end when enough is forgotten, and the weights that they end with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn import (
    NPO,
    ForgetRetainDataModule,
    GradDiff,
    GradientAscent,
    LanguageDataModule,
    Monitor,
    StopWhenForgotten,
    TaskVector,
    classifier_nll,
    training_step_loss,
)
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.report.findings import doctor
from tests.helpers import Recorder, same, trainer
from tests.tiny_runs import RAGGED, SgdLM
from tests.user_module import DictNet, LitNet, indexed, loaders, seeded

NAMES = ("forget", "retain", "never_seen")


def rows_of(name: str) -> list[dict[str, Any]]:
    """Rows to keep lie close to rows to forget and have the same labels, so that one can't go without the other."""
    if name == "never_seen":
        return labelled(indexed(8, 3), Tensor.argmax)  # likelier than the likeliest wrong answers to the rows to forget
    other = indexed(8, 9)
    near = 0.0 if name == "forget" else 0.8
    return [
        {"input": row["input"] + near * noise["input"], "labels": row["labels"]}
        for row, noise in zip(indexed(8, 8), other, strict=True)
    ]


def labelled(found: list[dict[str, Any]], chosen: Callable[[Tensor, int], Tensor]) -> list[dict[str, Any]]:
    """Rows with labels chosen by what the original model makes of them."""
    with torch.no_grad():
        labels = chosen(seeded(DictNet).eval()(torch.stack([row["input"] for row in found])), 1)
    return [row | {"labels": label} for row, label in zip(found, labels.tolist(), strict=True)]


def rows(**batch_sizes: int) -> ForgetRetainDataModule:
    sets = {name: rows_of(name) for name in NAMES}
    return ForgetRetainDataModule(sets["forget"], sets["retain"], {"never_seen": sets["never_seen"]}, **batch_sizes)


SHARP: dict[str, Any] = {"max_epochs": 15, "gradient_clip_val": 1.0, "lr": 0.2}
"""A run of 30 updates that forgets, and after some twenty of them loses the rows to keep too."""


def nll(module: L.LightningModule, name: str) -> float:
    """Of the rows of a set, by hand: the mean of those to keep, and that of the mean probability of the others."""
    found = rows_of(name)
    with torch.no_grad():
        logits = module(torch.stack([row["input"] for row in found]))
    each = nn.functional.cross_entropy(logits, torch.tensor([row["labels"] for row in found]), reduction="none")
    return each.mean().item() if name == "retain" else -(-each).exp().mean().log().item()


class Watched(Recorder):
    """The weights after each update, and the likelihoods that a hand measures with them."""

    def __init__(self) -> None:
        super().__init__(on_train_batch_end=self._after)
        self.states: dict[int, dict[str, Tensor]] = {}
        self.nll: dict[int, dict[str, float]] = {}

    def _after(self, run: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.states[run.global_step] = copy.deepcopy(module.state_dict())
        was = module.training
        module.eval()
        self.nll[run.global_step] = {name: nll(module, name) for name in NAMES}
        module.train(was)


def fit(stop: StopWhenForgotten, *beside: Any, data: Any = None, lr: float = 0.05, **options: Any) -> Any:
    watched, module = Watched(), seeded(DictNet, lr=lr)
    run = trainer(GradDiff(score=classifier_nll), *beside, watched, stop, limit_val_batches=0, **options)
    run.fit(module, data or rows(batch_size=4))
    return run, module, watched


def test_a_run_ends_with_the_first_update_that_reaches_the_target() -> None:
    stop = StopWhenForgotten(target=2.0, margin=None)
    run, module, watched = fit(stop, **SHARP)
    first = next(step for step, found in watched.nll.items() if found["forget"] >= 2.0)
    assert 1 < first == run.global_step < 30
    assert stop.outcome.reached
    assert stop.outcome.step == stop.outcome.steps == first
    assert same(module, watched.states[first])
    start = nll(seeded(DictNet).eval(), "forget")
    assert [point["forget"] for point in stop.curve] == pytest.approx(
        [start, *(found["forget"] for found in watched.nll.values())], abs=1e-5
    )


def test_the_target_is_the_likelihood_of_never_seen_rows_at_the_start() -> None:
    stop = StopWhenForgotten()
    fit(stop, max_epochs=1)
    assert stop.outcome.target == pytest.approx(nll(seeded(DictNet).eval(), "never_seen"))
    assert "of never-seen rows" in str(stop.outcome)


def test_once_there_a_run_goes_on_while_what_is_to_stay_gets_better() -> None:
    stop = StopWhenForgotten(target=1.15, patience=2, min_delta=0.03)
    run, module, watched = fit(stop, **SHARP)
    forget, kept = ([0.0, *(found[name] for found in watched.nll.values())] for name in ("forget", "retain"))
    last = next(
        step
        for step in range(3, 31)
        if min(forget[step - 2 : step + 1]) >= 1.15 and kept[step - 2] - min(kept[step - 2 : step + 1]) <= 0.03
    )
    there = [step for step in range(1, last + 1) if forget[step] >= 1.15]
    best = min(there, key=lambda step: kept[step])
    assert there[0] < best == stop.outcome.step
    assert last == run.global_step < 30
    assert stop.outcome.reached
    assert same(module, watched.states[best])


def test_rows_that_are_not_known_at_the_start_are_told_of() -> None:
    with pytest.warns(UserWarning, match="does not know them better"):
        fit(StopWhenForgotten(target=0.5), max_epochs=1)


def test_a_run_that_does_not_get_there_says_so_and_has_the_weights_of_its_best_step() -> None:
    start = nll(seeded(DictNet).eval(), "retain")
    stop = StopWhenForgotten(target=50.0, margin=0.0)
    with pytest.warns(UserWarning, match="Not reached: after step"):
        run, module, watched = fit(stop, **SHARP)
    kept = [step for step, found in watched.nll.items() if found["retain"] <= start]
    best = max(kept, key=lambda step: watched.nll[step]["forget"])
    assert 1 < best < run.global_step == 30
    assert (stop.outcome.reached, stop.outcome.step, stop.outcome.steps) == (False, best, 30)
    assert same(module, watched.states[best])
    assert not same(module, watched.states[30])
    assert stop.outcome.lost["retain"] == pytest.approx(nll(module.eval(), "retain") - start, abs=1e-6)


def test_a_monitor_before_it_measures_the_weights_that_the_run_ends_with() -> None:
    class Nll(Monitor):
        def evaluate(self, trainer: L.Trainer, module: L.LightningModule) -> Evaluation:
            return Evaluation(trainer.global_step, {"forget_nll": nll(module, "forget")})

        def show(self, logger: Any, step: int) -> None:
            pass

    stop, monitor = StopWhenForgotten(target=50.0, margin=0.0), Nll()
    fit(stop, monitor, **SHARP)
    assert stop.outcome.step < stop.outcome.steps
    assert monitor.history[-1].metrics["forget_nll"] == pytest.approx(stop.outcome.forget_nll, abs=1e-6)


def test_a_run_that_has_to_go_on_ends_with_the_weights_of_the_step_that_reached_the_target() -> None:
    short, long = (StopWhenForgotten(target=2.0, margin=None) for _ in range(2))
    run, module, _ = fit(short, **SHARP)
    further, same_module, watched = fit(long, min_steps=25, **SHARP)
    assert further.global_step == 25 > run.global_step
    assert long.outcome.step == short.outcome.step == run.global_step
    assert same(module, same_module)
    assert not same(module, watched.states[25])


def test_a_run_that_had_ended_is_resumed_with_one_update_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    stop, again = (StopWhenForgotten(target=1.15, patience=2, min_delta=0.03) for _ in range(2))
    run, module, _ = fit(stop, **SHARP)
    run.save_checkpoint(tmp_path / "ended.ckpt")
    resumed = seeded(DictNet, lr=0.2)
    further = trainer(GradDiff(score=classifier_nll), again, max_epochs=15, limit_val_batches=0, gradient_clip_val=1.0)
    further.fit(resumed, rows(batch_size=4), ckpt_path=tmp_path / "ended.ckpt", weights_only=True)
    assert further.global_step == run.global_step + 1
    assert (again.outcome.step, again.outcome.reached) == (stop.outcome.step, True)
    assert same(resumed, module)


def test_best_weights_are_given_back_where_something_else_stops_the_run() -> None:
    def halt(run: L.Trainer, *_: Any) -> None:
        run.should_stop = run.current_epoch == 13

    stop = StopWhenForgotten(target=50.0, margin=0.0)
    with pytest.warns(UserWarning, match="Something else has stopped the run"):
        run, module, watched = fit(stop, Recorder(on_train_epoch_end=halt), **SHARP)
    assert stop.outcome.step < run.global_step == 28
    assert same(module, watched.states[stop.outcome.step])


def test_it_measures_after_whole_updates_only() -> None:
    stop = StopWhenForgotten(target=50.0, every_n_steps=2)
    run, _, _ = fit(stop, max_epochs=3, accumulate_grad_batches=2, data=rows(batch_size=1))
    assert run.global_step == 12
    assert [point["step"] for point in stop.curve] == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_what_it_is_without(precision: Any) -> None:
    def end(*beside: Any) -> Any:
        module, watched = seeded(DictNet, dropout=0.3), Watched()
        torch.manual_seed(1)
        run = trainer(
            *(GradDiff(score=classifier_nll), *beside, watched), max_epochs=3, limit_val_batches=0, precision=precision
        )
        run.fit(module, rows(batch_size=2))
        return watched.states[11], torch.rand(1)

    weights, random = end()
    beside, random_beside = end(StopWhenForgotten(target=50.0, margin=None))
    assert same(weights, beside)
    assert random == random_beside


def test_a_score_of_the_users_training_step_logs_nothing_of_the_evaluation() -> None:
    logged = []
    for beside in ([], [StopWhenForgotten(target=50.0, margin=1.0)]):
        losses = Recorder(on_train_batch_end=lambda run, *_: run.callback_metrics["train_loss"].item())
        run = trainer(GradDiff(score=training_step_loss), *beside, losses, max_epochs=2, limit_val_batches=0)
        run.fit(seeded(LitNet), loaders())
        logged.append(losses.values)
    assert logged[0] == logged[1]
    assert len(logged[0]) == 8


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_run_ends_in_the_same_bits(accumulated: int, tmp_path: Path) -> None:
    def run(*beside: Any, **options: Any) -> Any:
        stop = StopWhenForgotten(target=50.0, margin=0.0, every_n_steps=2)
        stop.keep_reference = True
        module = seeded(DictNet, lr=0.2)
        made = trainer(
            *(GradDiff(score=classifier_nll), stop, *beside),
            **{"max_epochs": 15, "limit_val_batches": 0, "gradient_clip_val": 1.0},
            accumulate_grad_batches=accumulated,
        )
        made.fit(module, rows(batch_size=4 // accumulated), **options)
        return module, stop

    saver = Recorder(
        on_train_batch_end=lambda made, module, outputs, batch, number: (
            made.save_checkpoint(tmp_path / "half.ckpt") if made.current_epoch == 13 and number == 0 else None
        )
    )
    module, stop = run(saver)
    assert 0 < stop.outcome.step < stop.outcome.steps
    held = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"][stop.state_key]
    assert held["best_step"] == stop.outcome.step  # the resumed run never has these weights as its own
    resumed, again = run(ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed, module)
    assert again.outcome == stop.outcome
    assert again.curve == stop.curve


def of_best(file: Path) -> list[Any]:
    return [finding for finding in doctor(str(file)) if "best_weights" in finding.place]


def test_checkpoints_have_no_copy_of_weights_when_the_run_has_ended(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1, save_last=True)
    during: list[list[Any]] = []
    spy = Recorder(on_train_end=lambda *_: during.extend(of_best(file) for file in tmp_path.glob("*.ckpt")))
    stop = StopWhenForgotten(target=50.0, margin=0.0)
    run, module, _ = fit(stop, saver, spy, enable_checkpointing=True, **SHARP)
    run.save_checkpoint(tmp_path / "by-hand.ckpt")
    assert any(during)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 7
    for file in files:
        assert torch.load(file, weights_only=True)["callbacks"][stop.state_key]["best_weights"] is None
        assert of_best(file) == []
    assert same(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"], module)


# ---- what the target is taken from -----------------------------------------------------------------------------------


def test_without_never_seen_rows_the_target_is_the_likeliest_wrong_answer_of_the_start() -> None:
    stop, start = StopWhenForgotten(), seeded(DictNet).eval()
    fit(stop, data=ForgetRetainDataModule(indexed(8, 8), indexed(8, 9), batch_size=3), max_epochs=1)
    found = indexed(8, 8)
    with torch.no_grad():
        likelihoods = start(torch.stack([row["input"] for row in found])).log_softmax(1)
    for row, label in zip(likelihoods, (row["labels"] for row in found), strict=True):
        row[label] = -torch.inf
    wrong = (-likelihoods.max(1).values).clamp(max=math.log(3))
    assert stop.outcome.target == pytest.approx(-(-wrong).exp().mean().log().item())
    assert "likeliest wrong answers" in str(stop.outcome)


def test_never_seen_rows_that_are_out_of_reach_ask_for_no_more_than_wrong_answers() -> None:
    far = labelled(indexed(8, 3), Tensor.argmin)
    targets = []
    for sets in ({}, {"never_seen": far}):
        stop = StopWhenForgotten()
        fit(stop, data=ForgetRetainDataModule(indexed(8, 8), indexed(8, 9), sets, batch_size=3), max_epochs=1)
        targets.append(stop.outcome.target)
    assert targets[1] == targets[0]
    assert "never-seen rows are at" in str(stop.outcome)


def test_never_seen_rows_may_be_a_loader_or_a_set_of_another_name() -> None:
    loader = DataLoader(rows_of("never_seen"), batch_size=3)  # type: ignore[arg-type]
    other = ForgetRetainDataModule(indexed(8, 8), indexed(8, 9), {"test": rows_of("never_seen")})
    targets = []
    for stop, data in ((StopWhenForgotten(never_seen=loader), rows()), (StopWhenForgotten(never_seen="test"), other)):
        fit(stop, data=data, max_epochs=1)
        targets.append(stop.outcome.target)
    assert targets == pytest.approx([nll(seeded(DictNet).eval(), "never_seen")] * 2)


def test_a_language_model_stops_while_it_reads_answers_of_several_tokens(tiny_lm: Path) -> None:
    stop, module = StopWhenForgotten(margin=None), SgdLM(str(tiny_lm), lr=0.1)
    run = trainer(GradientAscent(), stop, max_epochs=20, limit_val_batches=0, gradient_clip_val=1.0)
    run.fit(module, LanguageDataModule(RAGGED[:6], batch_size=3))
    assert stop.outcome.reached
    assert run.global_step < 40


def test_a_score_without_logits_needs_never_seen_rows() -> None:
    run = trainer(GradDiff(score=training_step_loss), StopWhenForgotten(), limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match="set named 'never_seen'"):
        run.fit(seeded(), loaders())


# ---- runs that it refuses --------------------------------------------------------------------------------------------


def test_a_run_without_rows_to_keep_is_refused() -> None:
    run = trainer(GradientAscent(score=classifier_nll), StopWhenForgotten(), limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match="margin=None"):
        run.fit(seeded(DictNet), ForgetRetainDataModule(indexed(8, 8)))


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ([], "no unlearning callback"),
        ([NPO(score=classifier_nll), StochasticWeightAveraging(0.1)], "a mean of several"),
        ([TaskVector(score=classifier_nll)], "not a model that it makes"),
    ],
)
def test_what_has_no_best_step_is_refused(beside: list[Any], message: str) -> None:
    run = trainer(*beside, StopWhenForgotten(), limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match=message):
        run.fit(seeded(DictNet), rows())


def test_arguments_are_checked() -> None:
    for arguments in (
        {"target": 0},
        {"margin": -1},
        {"every_n_steps": 0},
        {"limit": 0},
        {"patience": -1},
        {"min_delta": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            StopWhenForgotten(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not to stay"):
        StopWhenForgotten(keep=["retain", "forget"])


def test_a_set_that_is_named_has_to_be_there() -> None:
    run = trainer(GradDiff(score=classifier_nll), StopWhenForgotten(never_seen="tset"), limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match="never_seen='tset'"):
        run.fit(seeded(DictNet), rows())


def test_a_score_that_draws_noise_draws_the_same_each_time() -> None:
    def noisy(module: L.LightningModule, batch: Any) -> Tensor:
        return classifier_nll(module, batch) + torch.rand(len(batch["labels"]))

    stop = StopWhenForgotten(target=50.0, margin=None, score=noisy)
    run = trainer(GradDiff(score=classifier_nll), stop, max_epochs=2, limit_val_batches=0)
    run.fit(seeded(DictNet, lr=0.0), rows())
    assert len({point["forget"] for point in stop.curve}) == 1
