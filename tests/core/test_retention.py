"""Checkpoints of a run hold the original model while it can be resumed, and not when it has ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_unlearn import NPO, GradDiff, UnlearnMonitor, classifier_nll, doctor
from tests.helpers import Recorder, same, trainer
from tests.user_module import LitNet, loaders


class AdamNet(LitNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def npo(**options: Any) -> NPO:
    return NPO(score=classifier_nll, **options)


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(file.relative_to(folder)): torch.load(file, weights_only=True) for file in folder.rglob("*.ckpt")}


def snapshot(checkpoint: dict[str, Any]) -> Any:
    return checkpoint["callbacks"]["NPO"]["snapshot"]


def checkpoints(folder: Path, save_last: Any = True) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_top_k=-1, save_last=save_last, every_n_train_steps=2)


@pytest.mark.parametrize(
    ("save_last", "plugins"), [(True, []), ("link", []), (True, [AsyncCheckpointIO()])], ids=["last", "link", "async"]
)
def test_no_file_holds_the_starting_model_after_the_run(tmp_path: Path, save_last: Any, plugins: list[Any]) -> None:
    during: list[bool] = []

    def save(run: L.Trainer, *_: Any) -> None:
        run.save_checkpoint(tmp_path / "own" / f"{run.global_step}.ckpt")

    def look(run: L.Trainer, *_: Any) -> None:
        during.extend(snapshot(file) is not None for file in files_of(tmp_path / "during").values())

    own = Recorder(on_train_epoch_end=save, on_train_end=save, on_fit_end=save)
    early = ModelCheckpoint(tmp_path / "during", every_n_train_steps=1)
    run = trainer(
        npo(), own, Recorder(on_train_end=look), checkpoints(tmp_path / "all", save_last), early,
        enable_checkpointing=True, plugins=plugins,
    )  # fmt: skip
    run.fit(AdamNet(), loaders())
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert plugins or True in during
    if plugins:
        run.strategy.checkpoint_io.teardown()
    files = files_of(tmp_path)
    assert len(files) >= 6
    for name, file in files.items():
        assert snapshot(file) is None, name
        assert "optimizer_states" not in file, name
        assert [finding for finding in doctor(tmp_path / name) if finding.serious] == []
    assert (tmp_path / "all" / "last.ckpt").is_symlink() == (save_last == "link")
    assert same(LitNet.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True), run.lightning_module)


def test_what_is_left_out_is_named_when_such_a_run_is_resumed(tmp_path: Path) -> None:
    run = trainer(npo())
    run.fit(LitNet(), loaders())
    run.save_checkpoint(tmp_path / "end.ckpt")
    again = trainer(npo(), max_epochs=2)
    with pytest.raises(MisconfigurationException, match=r"holds the starting weights.* NPO\(keep_reference=True\)"):
        again.fit(LitNet(), loaders(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert again.global_step == 0


def test_by_name_it_is_kept(tmp_path: Path) -> None:
    run = trainer(npo(keep_reference=True), checkpoints(tmp_path), enable_checkpointing=True)
    run.fit(LitNet(), loaders())
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert all(snapshot(file) for file in files_of(tmp_path).values())
    assert {finding.kind for finding in doctor(tmp_path / "end.ckpt")} >= {"starting weights"}


def test_a_method_without_a_reference_can_go_on_from_its_end(tmp_path: Path) -> None:
    modules = [AdamNet() for _ in range(3)]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    trainer(GradDiff(score=classifier_nll), max_epochs=2).fit(modules[0], loaders())
    half = trainer(GradDiff(score=classifier_nll))
    half.fit(modules[1], loaders())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = trainer(GradDiff(score=classifier_nll), max_epochs=2)
    resumed.fit(modules[2], loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(modules[2], modules[0])
    assert [finding.kind for finding in doctor(tmp_path / "half.ckpt")] == ["optimizer state"]


def test_an_interrupted_run_can_be_resumed_and_then_its_files_are_clean(tmp_path: Path) -> None:
    def fail(run: L.Trainer, *_: Any) -> None:
        if run.global_step == 3:
            raise RuntimeError("power cut")

    def make(*more: Any) -> L.Trainer:
        saving = (checkpoints(tmp_path), OnExceptionCheckpoint(tmp_path))
        return trainer(npo(), *saving, *more, enable_checkpointing=True, max_epochs=2)

    with pytest.raises(RuntimeError, match="power cut"):
        make(Recorder(on_train_batch_start=fail)).fit(AdamNet(), loaders())
    files = files_of(tmp_path)
    assert "on_exception.ckpt" in files
    assert all(snapshot(file) for file in files.values())
    assert all("callbacks/NPO/snapshot" in file["lightning_unlearn_run"]["holds"] for file in files.values())

    make().fit(AdamNet(), loaders(), ckpt_path=tmp_path / "on_exception.ckpt", weights_only=True)
    files = files_of(tmp_path)
    assert len(files) > 3
    assert not any(snapshot(file) for file in files.values())


def test_files_of_the_interrupted_part_are_clean_in_whatever_folder(tmp_path: Path) -> None:
    def fail(run: L.Trainer, *_: Any) -> None:
        if run.global_step == 5:
            raise RuntimeError("power cut")

    def fit(kept: str, crash: str, *more: Any, **options: Any) -> None:
        saving = (checkpoints(tmp_path / kept), OnExceptionCheckpoint(tmp_path / crash))
        trainer(npo(), *saving, *more, enable_checkpointing=True, max_epochs=2).fit(AdamNet(), loaders(), **options)

    with pytest.raises(RuntimeError, match="power cut"):
        fit("first", "crash", Recorder(on_train_batch_start=fail))
    left = files_of(tmp_path / "first")
    assert left
    assert all(snapshot(file) for file in left.values())
    fit("second", "other", ckpt_path=tmp_path / "crash" / "on_exception.ckpt", weights_only=True)
    for folder in ("first", "second", "crash"):
        files = files_of(tmp_path / folder)
        assert files
        assert not any(snapshot(file) or file["lightning_unlearn_run"]["paths"] for file in files.values())


def test_a_checkpoint_that_an_error_causes_is_clean_after_the_resumed_run(tmp_path: Path) -> None:
    def fail(run: L.Trainer, *_: Any) -> None:
        if run.global_step == 5 and run.ckpt_path is None:
            raise RuntimeError("power cut")

    def fit(**options: Any) -> None:
        saved = ModelCheckpoint(
            tmp_path,
            filename="{step}/{unlearn/loss:.2f}",
            monitor="unlearn/loss",
            every_n_train_steps=2,
            save_top_k=2,
            save_last="link",
            save_on_exception=True,
        )
        run = trainer(npo(), saved, Recorder(on_train_batch_start=fail), enable_checkpointing=True, max_epochs=3)
        run.fit(AdamNet(), loaders(), **options)

    with pytest.raises(RuntimeError, match="power cut"):
        fit()
    files = {path: torch.load(path, weights_only=True) for path in tmp_path.rglob("*.ckpt")}
    assert all(snapshot(file) for file in files.values())
    fit(ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    files = {path: torch.load(path, weights_only=True) for path in tmp_path.rglob("*.ckpt")}
    assert len(files) > 2
    assert not [path for path, file in files.items() if snapshot(file)]


def test_another_runs_files_beside_are_left_alone(tmp_path: Path) -> None:
    torch.save({"callbacks": {"NPO": {"snapshot": {"a": torch.ones(2)}}}}, tmp_path / "other.ckpt")
    (tmp_path / "odd.ckpt").write_bytes(b"not a checkpoint")
    kept = {name: (tmp_path / name).read_bytes() for name in ("other.ckpt", "odd.ckpt")}
    trainer(npo(), checkpoints(tmp_path), enable_checkpointing=True).fit(LitNet(), loaders())
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept


def test_a_file_that_can_not_be_rewritten_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    fill = Recorder(on_train_end=lambda *_: monkeypatch.setattr(os, "replace", full))
    run = trainer(npo(), checkpoints(tmp_path), fill, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"last\.ckpt may still hold .* No space left"):
        run.fit(LitNet(), loaders())


def test_the_trainer_is_given_back(tmp_path: Path) -> None:
    run = trainer(npo(), UnlearnMonitor(score=classifier_nll))
    run.fit(LitNet(), loaders())
    assert "save_checkpoint" not in run.__dict__
