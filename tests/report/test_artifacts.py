"""Artifacts of a run, read back from what an offline W&B run has kept to be uploaded."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_unlearn import (
    NPO,
    GradientAscent,
    LanguageDataModule,
    LitCausalLM,
    LogArtifacts,
    RandomMask,
    SimNPO,
    apply_delta,
    classifier_nll,
    doctor,
    log_artifacts,
    write_report,
)
from tests.helpers import same
from tests.language.test_monitor import records
from tests.report.reports import full_report
from tests.user_module import LitNet, loaders, seeded, trainer

pytest.importorskip("wandb")

Rows = list[dict[str, Any]]


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    return WandbLogger(offline=True, save_dir=tmp_path, project="test")


def read_back(logger: WandbLogger, folder: Path) -> dict[str, Any]:
    """The artifacts of the run by name, with their files copied into a folder each."""
    found = {}
    for record in records(logger):
        # W&B keeps every table as an artifact, too.
        if record.WhichOneof("record_type") == "artifact" and record.artifact.type != "run_table":
            artifact = record.artifact
            for entry in artifact.manifest.contents:
                content = Path(entry.local_path).read_bytes()
                assert b64encode(md5(content).digest()).decode() == entry.digest
                target = folder / artifact.type / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            found[artifact.name] = artifact
    return found


def test_the_model_of_a_users_module_and_its_delta_come_back(logger: WandbLogger, tmp_path: Path) -> None:
    start, module = seeded(), seeded()
    run_id = logger.experiment.id
    callbacks = [NPO(score=classifier_nll, reference="snapshot"), RandomMask(0.5), LogArtifacts(delta=True)]
    trainer(*callbacks, logger=logger).fit(module, loaders())
    found = read_back(logger, tmp_path / "back")
    assert found.keys() == {f"unlearned-model-{run_id}", f"delta-{run_id}"}
    metadata = json.loads(found[f"unlearned-model-{run_id}"].metadata)
    assert metadata == {"method": "NPO", "step": module.trainer.global_step, "epoch": 1}
    path = tmp_path / "back/model/model.ckpt"
    assert same(LitNet.load_from_checkpoint(path, weights_only=True), module)
    assert doctor(path) == []
    apply_delta(start, tmp_path / "back/delta/delta.safetensors")
    assert same(start, module)


def test_a_language_model_comes_back_as_a_folder(
    logger: WandbLogger, tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    module, data = LitCausalLM(str(tiny_lm), lr=1e-3), LanguageDataModule(forget_rows, retain_rows, batch_size=2)
    trainer(SimNPO(), LogArtifacts(delta=True), logger=logger, limit_val_batches=0).fit(module, data)
    read_back(logger, tmp_path / "back")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "back/model"), module.model)
    assert (tmp_path / "back/model/tokenizer_config.json").is_file()
    apply_delta(tiny_lm, tmp_path / "back/delta/delta.safetensors", tmp_path / "applied")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "applied"), module.model)


def test_of_an_audit_the_evidence_is_logged_and_not_its_secret(logger: WandbLogger, tmp_path: Path) -> None:
    class Audits(L.Callback):
        def on_fit_end(self, *_: Any) -> None:
            write_report(full_report(), audit)
            (audit / "record.jsonl").write_text("{}\n")
            (audit / "rows.secret").write_text("0" * 64)
            (audit / "parts").mkdir()
            (audit / "parts/plain.json").write_text("{}")

    audit = tmp_path / "audit"
    files: Any = {"record": str(audit), "mask": [str(tmp_path / "mask.safetensors")]}
    callbacks = [LogArtifacts(model=False, files=files), GradientAscent(score=classifier_nll), Audits()]
    with pytest.warns(UserWarning, match=r"did not find .*mask\.safetensors, and leaves it out of 'mask'"):
        trainer(*callbacks, logger=logger).fit(seeded(), loaders())
    (artifact,) = read_back(logger, tmp_path / "back").values()
    names = [entry.path for entry in artifact.manifest.contents]
    assert sorted(names) == ["record.jsonl", "report.html", "report.json", "report.md"]


@contextmanager
def refused(what: str) -> Iterator[None]:
    with pytest.raises(ValueError, match=what):
        yield


def test_what_gives_away_the_time_before_is_refused(logger: WandbLogger, tmp_path: Path) -> None:
    run = trainer(NPO(score=classifier_nll, reference="snapshot"))
    run.fit(seeded(), loaders())
    for callback in run.callbacks:  # type: ignore[attr-defined]
        callback.keep_reference = True
    run.save_checkpoint(tmp_path / "resumable.ckpt")
    with refused(r"resumable\.ckpt gives away .*the starting weights.*lightning-unlearn export"):
        log_artifacts(logger, {"model": tmp_path / "resumable.ckpt"})
    write_report(full_report(), tmp_path / "told", show_text=True)
    with refused(r"report\.html gives away .*without show_text"):
        log_artifacts(logger, {"record": tmp_path / "told"})
    (tmp_path / "key.pem").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    (tmp_path / "rows.secret").write_text("0" * 64)
    for name in ("key.pem", "rows.secret"):
        with refused(f"{name} is a secret"):
            log_artifacts(logger, {"other": [tmp_path / name]})
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nothing"):
        log_artifacts(logger, {"model": tmp_path / "nothing"})
    assert read_back(logger, tmp_path / "back") == {}


def test_a_refusal_after_the_run_does_not_take_the_rest_along(logger: WandbLogger, tmp_path: Path) -> None:
    (tmp_path / "rows.secret").write_text("0" * 64)
    callback = LogArtifacts(files={"other": str(tmp_path / "rows.secret")})
    with pytest.warns(UserWarning, match="leaves 'other' out"):
        trainer(GradientAscent(score=classifier_nll), callback, logger=logger).fit(seeded(), loaders())
    assert [artifact.type for artifact in read_back(logger, tmp_path / "back").values()] == ["model"]


def test_a_run_that_fails_logs_nothing(logger: WandbLogger, tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_end(self, *_: Any) -> None:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        trainer(GradientAscent(score=classifier_nll), LogArtifacts(), Fails(), logger=logger).fit(seeded(), loaders())
    assert read_back(logger, tmp_path / "back") == {}


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (LogArtifacts, {"logger": False}, "no WandbLogger.*offline=True"),
        (LogArtifacts, {"logger": CSVLogger}, "no WandbLogger"),
        (lambda: LogArtifacts(delta=True), {"ckpt": True}, "export --delta"),
    ],
)
def test_what_is_missing_is_said_before_the_first_step(
    callback: Callable[[], LogArtifacts], options: dict[str, Any], message: str, logger: WandbLogger, tmp_path: Path
) -> None:
    given: Any = options.get("logger", logger)
    path = tmp_path / "a.ckpt"
    if "ckpt" in options:
        first = trainer(GradientAscent(score=classifier_nll))
        first.fit(seeded(), loaders())
        first.save_checkpoint(path)
    module = seeded()
    run = trainer(
        GradientAscent(score=classifier_nll), callback(), logger=given(tmp_path) if callable(given) else given
    )
    with pytest.raises(MisconfigurationException, match=message):
        run.fit(module, loaders(), ckpt_path=path if "ckpt" in options else None, weights_only=True)
    if "ckpt" not in options:
        assert same(module, seeded())


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to log"):
        LogArtifacts(model=False)
    with pytest.raises(ValueError, match="names \\['delta'\\], which it makes itself"):
        LogArtifacts(files={"delta": "x"})


@pytest.mark.parametrize(("log_model", "save_top_k", "warned"), [("all", 1, True), (True, -1, True), (True, 1, False)])
def test_checkpoints_that_are_uploaded_too_early_are_warned_of(
    log_model: Any, save_top_k: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(save_dir=tmp_path, project="test", log_model=log_model)
    monkeypatch.setattr(logger, "after_save_checkpoint", lambda _: None)
    monkeypatch.setattr(logger, "finalize", lambda _: None)
    checkpoints = ModelCheckpoint(tmp_path / "kept", save_top_k=save_top_k)
    options = {"logger": logger, "enable_checkpointing": True}
    run = trainer(NPO(score=classifier_nll, reference="snapshot"), checkpoints, **options)
    with pytest.warns() as caught:
        run.fit(seeded(), loaders())
    assert any("uploads checkpoints while the run goes on" in str(w.message) for w in caught) == warned
    shutil.rmtree(tmp_path / "kept")
    assert torch.isfinite(next(iter(run.lightning_module.parameters()))).all()


class Service(CSVLogger):
    """A logger of a service that keeps models, as MLflow's."""

    def __init__(self, folder: Path, log_model: Any) -> None:
        super().__init__(folder)
        self._log_model = log_model


@pytest.mark.parametrize(
    ("log_model", "save_top_k", "when"),
    [("all", 1, "while the run goes on"), (True, -1, "while the run goes on"), (True, 1, "of an interrupted run")],
)
def test_loggers_of_other_services_are_warned_of_too(
    log_model: Any, save_top_k: int, when: str, tmp_path: Path
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "kept", save_top_k=save_top_k)
    options = {"logger": Service(tmp_path, log_model), "enable_checkpointing": True}
    run = trainer(NPO(score=classifier_nll, reference="snapshot"), checkpoints, **options)
    with pytest.warns(UserWarning, match=rf"Service\(log_model={log_model!r}\) uploads checkpoints {when}, with"):
        run.fit(seeded(), loaders())
