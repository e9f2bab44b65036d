"""Retain terms: distances of hidden states, and weights on a ramp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import NPO, EmbeddingDifference, GradDiff, LanguageDataModule, Ramp, SimNPO, classifier_nll
from tests.helpers import Recorder, logged, same, trainer
from tests.tiny_runs import LONG, LORA, Rows, lm
from tests.user_module import LitNet, loaders, pairs, seeded


def data(forget: Rows, retain: Rows | None, **options: Any) -> LanguageDataModule:
    return LanguageDataModule(forget, retain, **({"batch_size": 2} | options))


# ---- hidden states ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("layer", [None, r"layers\.0$"])
def test_the_distance_of_hidden_states_is_that_of_the_formula(
    layer: str | None, lora: Any, tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    forget_rows[0]["answer"] += LONG  # so that the retain rows are padded to it
    retain_rows[0]["answer"] += ", no doubt"
    retain_rows.append({**retain_rows[1], "answer": "Well, Lima."})

    def hidden(module: Any, batch: Any) -> Tensor:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = module.model(**inputs, output_hidden_states=True).hidden_states
        return states[-1] if layer is None else states[1]

    start = lm(tiny_lm)

    def by_hand(run: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> tuple[float, bool]:
        rows = batch["retain"]
        square = (hidden(module, rows) - hidden(start, rows)).square().mean(-1)
        mask = rows["attention_mask"].bool()
        return square[mask].mean().item(), bool(mask.all())

    module = lm(tiny_lm, lora=lora)
    expected, retain = Recorder(on_train_batch_start=by_hand), logged("unlearn/retain")
    method = GradDiff(retain=EmbeddingDifference(layer), retain_weight=3.0)
    run = trainer(method, expected, retain, max_epochs=3, limit_val_batches=0)
    run.fit(module, data(forget_rows, retain_rows, retain_batch_size=2))
    assert not all(unpadded for _, unpadded in expected.values)
    assert retain.values[0] == 0
    assert retain.values[-1] > 1e-8
    assert retain.values == pytest.approx([distance for distance, _ in expected.values], rel=1e-3, abs=1e-9)
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    assert metrics["unlearn/loss"] == pytest.approx(metrics["unlearn/forget"] + 3 * metrics["unlearn/retain"], rel=1e-5)


def test_hidden_states_come_off_the_joint_forward_pass() -> None:
    calls: list[int] = []

    class Counting(LitNet):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    method = SimNPO(retain=EmbeddingDifference("net.1"), score=classifier_nll)
    trainer(method, max_steps=1).fit(Counting(), loaders())
    # After the comparison of the module's own loss with the score's: the original model on the retain rows, then all.
    assert calls[2:] == [4, 8]


def test_a_strong_term_holds_the_hidden_states() -> None:
    moved = []
    for weight in (0.0, 100.0):
        module = seeded(lr=0.01)
        x, _ = next(iter(pairs(4, seed=2)))
        before = module.net[:2](x)
        method = GradDiff(retain_weight=weight, retain=EmbeddingDifference("net.1"), score=classifier_nll)
        trainer(method, max_epochs=5).fit(module, loaders(16, 4))
        moved.append((module.net[:2](x) - before).square().mean().item())
    assert moved[1] < moved[0] / 4


@pytest.mark.parametrize(
    ("layer", "message"),
    [(None, "no output head can be found in LitNet"), ("net.9", "layer='net.9' has to name one module")],
)
def test_a_layer_that_is_not_there(layer: str | None, message: str) -> None:
    method = GradDiff(retain=EmbeddingDifference(layer), score=classifier_nll)
    module = seeded()
    with pytest.raises(MisconfigurationException, match=message):
        trainer(method).fit(module, loaders())
    assert same(module, seeded())


# ---- the ramp --------------------------------------------------------------------------------------------------------


def test_a_ramp_is_a_straight_line() -> None:
    assert [Ramp(end=2.0).at(epoch, 4) for epoch in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [Ramp(3.0, 1.0).at(epoch, 2) for epoch in range(3)] == [3.0, 2.0, 1.0]


def test_the_retain_weight_of_each_epoch() -> None:
    weight, loss, forget, retain = (logged(f"unlearn/{n}") for n in ("retain_weight", "loss", "forget", "retain"))
    method = NPO(retain_weight=Ramp(end=2.0), score=classifier_nll)
    trainer(method, weight, loss, forget, retain, max_epochs=4).fit(seeded(), loaders(8, 8))
    assert weight.values == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
    sums = [f + w * r for f, w, r in zip(forget.values, weight.values, retain.values, strict=True)]
    assert loss.values == pytest.approx(sums, rel=1e-5)


def test_a_ramp_reads_retain_rows_from_the_start() -> None:
    with pytest.raises(MisconfigurationException, match=r"needs \['retain'\]"):
        trainer(NPO(retain_weight=Ramp(), score=classifier_nll)).fit(seeded(), {"forget": pairs(8, seed=1)})


def test_a_ramp_needs_an_end() -> None:
    module = seeded()
    with pytest.raises(MisconfigurationException, match="max_epochs is -1"):
        trainer(NPO(retain_weight=Ramp(), score=classifier_nll), max_epochs=-1, max_steps=2).fit(module, loaders())
    trainer(NPO(retain_weight=Ramp(epochs=3), score=classifier_nll), max_epochs=-1, max_steps=2).fit(module, loaders())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(start=-1.0), "start must be at least 0, but got -1.0"),
        (lambda: Ramp(end=float("nan")), "end must be at least 0, but got nan"),
        (lambda: Ramp(epochs=0), "epochs must be at least 1, but got 0"),
        (lambda: NPO(retain="l2"), "retain must be 'nll' or 'kl', but got 'l2': or give an EmbeddingDifference"),
    ],
)
def test_the_constructor_names_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "args",
    [
        ["retain_weight={end: 2.0, epochs: 4}", "retain={layer: net.1}"],
        ["retain_weight.end=2.0", "retain_weight.epochs=4", "retain.layer=net.1"],
    ],
)
def test_both_are_set_from_the_command_line(args: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-unlearn"])
    fragment = tmp_path / "npo.yaml"
    fragment.write_text("trainer: {callbacks+: [{class_path: lightning_unlearn.NPO, init_args: {beta: 0.5}}]}")
    words = ["--config", str(fragment), *(f"--trainer.callbacks.{arg}" for arg in args)]
    words += ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]
    cli = LightningCLI(LitNet, L.LightningDataModule, run=False, save_config_callback=None, args=words)
    (method,) = [c for c in cli.trainer.callbacks if isinstance(c, NPO)]  # type: ignore[attr-defined]
    assert method.retain_weight == Ramp(0.0, 2.0, 4)
    assert method.retain == EmbeddingDifference("net.1")
