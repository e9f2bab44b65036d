"""A request from its check to its record: every step once, also where it was killed between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_unlearn.audit.keys import load_public_key
from lightning_unlearn.audit.verify import verify_record
from lightning_unlearn.cli.forget import fit
from lightning_unlearn.core.lightning import Callback
from lightning_unlearn.forget.certificate import own_key
from lightning_unlearn.forget.pipeline import RequestResult, run_request
from lightning_unlearn.forget.request import RequestOptions
from lightning_unlearn.report.findings import doctor
from tests.forget.fake import FakeRequest
from tests.helpers import same


@pytest.fixture(autouse=True)
def _own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.chdir(tmp_path)


def request(tmp_path: Path, name: str = "out", callbacks: list[Any] | None = None, **options: Any) -> FakeRequest:
    before = tmp_path / "before.pt"
    before.touch()
    return FakeRequest(before, RequestOptions(str(tmp_path / name), accelerator="cpu", **options), callbacks or [])


class Dies(Callback):
    """Ends the run as a kill does: nothing is tidied up."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise _KilledError


class _KilledError(BaseException):
    pass


def test_a_request_ends_with_model_report_record_and_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_request(request(tmp_path), fit)
    assert isinstance(result, RequestResult)
    out = tmp_path / "out"
    wanted = {"model", "report.html", "report.json", "report.md", "record.jsonl", "public_key.pem", "run.yaml"}
    assert {path.name for path in out.iterdir()} == wanted | {"state.json", "private"}
    assert [finding.file for finding in doctor(out)] == [out / "private" / "metrics.csv"]
    assert (out / "private").stat().st_mode & 0o777 == 0o700
    key = load_public_key(out / "public_key.pem")
    checked = {"models": {"after": out / "model"}, "report": out / "report.json", "expect_head": result.head}
    assert verify_record(out / "record.jsonl", key, **checked) == []
    assert "record_head: " + str(result.head) in (out / "model" / "README.md").read_text()
    (secret,) = (own_key().parent / "rows").iterdir()
    assert [file.stat().st_mode & 0o777 for file in (own_key(), secret)] == [0o600, 0o600]
    said = capsys.readouterr().out
    assert f"Hand out the model alone. {out / 'private'} " in said
    assert "Note: The rows are random." in said
    assert f"--expect_head {result.head}" in said

    weights = out / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert [f.kind for f in verify_record(out / "record.jsonl", key, **checked)] == ["tensor changed"]


def test_run_yaml_repeats_the_run_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_request(request(tmp_path), fit)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    fit(["fit", "--config", str(tmp_path / "out" / "run.yaml"), "--trainer.enable_progress_bar=false"])
    again = torch.load("unlearned.ckpt", weights_only=True)
    assert same(again["state_dict"], load_file(tmp_path / "out" / "model" / "model.safetensors"))
    assert not again.get("callbacks")
    with pytest.raises(FileExistsError, match="the run would write over it"):
        fit(["fit", "--config", str(tmp_path / "out" / "run.yaml")])


def test_a_killed_request_goes_on_and_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_unlearn.forget.pipeline.PAUSE", 0.0)
    run_request(request(tmp_path, "whole"), fit)
    killed = request(tmp_path)

    def dying(words: Any) -> None:
        dies = yaml.safe_dump({"trainer": {"callbacks+": [{"class_path": f"{__name__}.Dies"}]}})
        Path("dies.yaml").write_text(dies)
        fit([*words, "--config", "dies.yaml"])

    with pytest.raises(_KilledError):
        run_request(killed, dying)
    kept = torch.load(tmp_path / "out" / "work" / "last.ckpt", weights_only=True)
    run_request(killed, fit)
    assert 1 <= kept["global_step"] <= 5
    assert not (tmp_path / "out" / "work").exists()
    assert killed.calls == ["check", "config", "check", "export", "evidence"]
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "out")]
    assert same(*models)
    logs = [(tmp_path / name / "private" / "metrics.csv").read_text() for name in ("whole", "out")]
    assert len(logs[0].splitlines()) == len(logs[1].splitlines())
    run_request(killed, fit)
    assert killed.calls[-1] == "check"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    run_request(request(tmp_path, max_steps=1), fit)
    with pytest.raises(FileExistsError, match="differs in seed"):
        run_request(request(tmp_path, seed=1), fit)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused = request(tmp_path, "mine")
    with pytest.raises(FileExistsError, match="files that are of no request"):
        run_request(refused, fit)
    assert refused.calls == []


def test_two_processes_do_not_work_on_one_request(tmp_path: Path) -> None:
    def second(words: Any) -> None:
        with pytest.raises(FileExistsError, match="Another process works on"):
            run_request(request(tmp_path, max_steps=1), fit)
        fit(words)

    assert run_request(request(tmp_path, max_steps=1), second) is not None


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_request(request(tmp_path, dry_run=True), fit) is None
    assert "to forget:" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before.pt"]


def test_what_would_fail_at_the_end_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no key"):
        run_request(request(tmp_path, key="absent.pem"), fit)
    with pytest.raises(ValueError, match="shards them"):
        run_request(request(tmp_path, strategy="fsdp"), fit)
    assert not (tmp_path / "out").exists()


def test_a_record_without_key_says_that_nobody_vouches_for_it(tmp_path: Path) -> None:
    run_request(request(tmp_path, key="none", max_steps=1), fit)
    assert not (tmp_path / "out" / "public_key.pem").exists()
    assert not own_key().exists()
    faults = verify_record(tmp_path / "out" / "record.jsonl", models={"after": tmp_path / "out" / "model"})
    assert {fault.level for fault in faults} == {"incomplete"}
