"""Progress: bars in a terminal, lines in a log."""

from __future__ import annotations

import io
import sys
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_unlearn.core import trainer_progress
from lightning_unlearn.core.progress import LogLines, counter, progress
from lightning_unlearn.core.trainer_progress import ProgressLines, log_progress
from tests.user_module import LitNet, loaders


class Measured(LitNet):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("error", (self(batch[0]).argmax(-1) != batch[1]).float().mean(), prog_bar=True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_work_in_a_log_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with LogLines("UCE", 3, unit="layer", seconds=0.0, closing=True) as lines:
        for _ in range(3):
            lines.update()
    assert capsys.readouterr().err == "UCE: 1 of 3 layers, 0:00\nUCE: 2 of 3 layers, 0:00\nUCE: 3 of 3 layers, 0:00\n"


def test_short_work_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(5), "UCE")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_work_that_failed_does_not_say_that_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), counter("seeds", 4, done=1, unit="run"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""
    with counter("seeds", 4, done=1, unit="run") as shown:
        shown.update(3)
    assert capsys.readouterr().err == "seeds: 4 of 4 runs, 0:00\n"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with counter("seeds", 4, unit="run") as shown:
        shown.update(4)
    assert "\r" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


def test_a_trainer_in_a_log_writes_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_progress, "ProgressLines", lambda: ProgressLines(seconds=0.0))
    trainer = run(max_epochs=2, limit_train_batches=2, num_sanity_val_steps=0)
    log_progress(trainer)
    trainer.fit(Measured(), loaders()["retain"], loaders()["forget"])
    out = capsys.readouterr().out
    assert "\r" not in out
    lines = out.splitlines()
    assert "Training: epoch 1 of 2, batch 1 of 2" in lines[0]
    assert lines[-1].startswith("Training: epoch 2 of 2, batch 2 of 2: error ")
    assert "Validation: batch 1" in lines


def test_an_endless_training_has_no_total(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run(max_epochs=-1, max_steps=3)
    log_progress(trainer)
    trainer.fit(LitNet(), loaders()["retain"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Training: epoch ")
    assert "of -1" not in last


@pytest.mark.parametrize("terminal", [True, False])
def test_only_lightnings_own_bars_are_replaced_and_only_in_a_log(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(TQDMProgressBar):
        pass

    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    kinds = []
    for options in ({}, {"callbacks": [TQDMProgressBar()]}, {"callbacks": [Own()]}, {"enable_progress_bar": False}):
        trainer = run(**options)
        log_progress(trainer)
        kinds.append(type(trainer.progress_bar_callback))
    if terminal:
        assert kinds[0] in (RichProgressBar, TQDMProgressBar)
        assert kinds[1:] == [TQDMProgressBar, Own, type(None)]
    else:
        assert kinds == [ProgressLines, ProgressLines, Own, type(None)]


def run(**options: Any) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, **options)
