"""Traces of the original model in files, found without running what is in them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file

from lightning_unlearn import (
    NPO,
    Evaluation,
    Example,
    ForgetRetainDataModule,
    ImageRow,
    Images,
    Section,
    Table,
    UnlearningReport,
    UnlearnMonitor,
    classifier_nll,
    doctor,
    png,
    run_report,
    save_delta,
    write_report,
)
from lightning_unlearn.cli.main import main
from lightning_unlearn.core.retention import OWN_ANSWER
from tests.helpers import Recorder, trainer
from tests.user_module import DictNet, LitNet, indexed, loaders

ROW = Example("forget", "Where does Ada Moss live?", "In Wells Street.", "In Wells Street.", True)
KEPT = Example("retain", "Where is the Eiffel Tower?", "In Paris.", "In Paris.", True)
SEEN = Evaluation(
    0, {"forget_accuracy": 1.0}, [ROW, KEPT, dataclasses.replace(ROW, set="paraphrased")], "answered correctly"
)


def kinds(path: Path) -> set[str]:
    return {finding.kind for finding in doctor(path) if finding.serious}


def run_doctor(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        main(["doctor", f"--file={path}"])
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    said = capsys.readouterr()
    return int(code or 0), said.out, said.err


@pytest.mark.parametrize("rows", ["pairs", "indexed"])
def test_a_run_and_its_end(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, data = LitNet(), loaders()
    if rows == "indexed":
        module, data = DictNet(), ForgetRetainDataModule(indexed(8, 1), indexed(8, 2), batch_size=4)
    save = Recorder(on_train_epoch_end=lambda run, *_: run.save_checkpoint(tmp_path / "a" / "during.ckpt"))
    stop = Recorder(on_train_end=lambda *_: (tmp_path / "a" / "during.ckpt").rename(tmp_path / "during.ckpt"))
    (tmp_path / "a").mkdir()
    run = trainer(NPO(score=classifier_nll), save, stop)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "end.ckpt")
    code, out, _ = run_doctor(tmp_path / "during.ckpt", capsys)
    assert code == 1
    assert ("starting weights" if rows == "pairs" else "reference likelihoods") in out
    assert run_doctor(tmp_path / "end.ckpt", capsys)[0] == 0
    assert run_doctor(tmp_path, capsys)[0] == 1


@pytest.mark.parametrize("answers", [None, ["In Wells Street."]])
def test_the_folder_of_an_audit(answers: list[str] | None, tmp_path: Path) -> None:
    sets = {"forget": {"matched": [1.0], "answers": answers}, "retain": {"answers": ["In Paris."]}}
    part = {"name": "rows", "model": "a1", "settings": {}, "outcome": {"sets": sets, "perplexity": None}}
    facts = {"name": "facts", "model": "a1", "settings": {}, "outcome": {"parameters": 3}}
    for name, record in (("rows", part), ("facts", facts)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    assert kinds(tmp_path) == ({"answers"} if answers else set())
    (tmp_path / "rows.secret").write_text("00" * 32 + "\n")
    (finding,) = doctor(tmp_path / "rows.secret")
    assert (finding.kind, finding.serious) == ("rows", True)


def test_answers_of_a_report_a_table_and_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    report = run_report("NPO", "m", SEEN, SEEN, curves=[SEEN])
    write_report(report, tmp_path / "shown", show_text=True)
    write_report(report, tmp_path / "hidden")
    for name in ("report.json", "report.md", "report.html"):
        assert kinds(tmp_path / "shown" / name) == {"answers"}
    assert doctor(tmp_path / "hidden") == []
    for file in (tmp_path / "hidden").iterdir():
        text = file.read_text(encoding="utf-8")
        assert "Wells" not in text
        assert "Ada" not in text
        assert "Eiffel" in text
    rows = [row for part in UnlearningReport.read(tmp_path / "hidden").section("examples").parts for row in part.rows]
    assert [row.hits for row in rows] == [[True, True]] * 3

    for show, found in ((False, set()), (True, {"answers"})):
        logger = CSVLogger(tmp_path, name=f"log-{show}")
        questions = {"forget": [{"question": ROW.input, "answer": ROW.expected}]}
        monitor = UnlearnMonitor(
            questions=questions,
            generate=lambda _, asked: [ROW.expected] * len(asked),
            score=classifier_nll,
            show_answers=show,
        )
        run = trainer(NPO(score=classifier_nll), monitor, logger=logger)
        run.fit(LitNet(), loaders())
        assert monitor.history[0].examples[0].input == ROW.input
        run.save_checkpoint(tmp_path / f"log-{show}" / "end.ckpt")
        assert kinds(tmp_path / f"log-{show}") == found
        data = b"".join(file.read_bytes() for file in (tmp_path / f"log-{show}").rglob("*") if file.is_file())
        assert (b"Wells" in data) == show


def test_reports_show_rows_in_tables_and_images(tmp_path: Path) -> None:
    table = Table("Rows", ["row", "answer"], [[1, "In Wells Street."]], secret=["answer"])
    images = Images("Before", ["disk"], [ImageRow("ember", [png(torch.zeros(3, 8, 8))], secret=True)])
    for name, part in {"table": table, "images": images}.items():
        report = UnlearningReport(title="", sections=[Section("a", "", [part])])
        for show in (True, False):
            write_report(report, tmp_path / name, show_text=show)
            for file in ("report.json", "report.md", "report.html"):
                assert kinds(tmp_path / name / file) == ({"answers"} if show else set()), (name, file, show)


def test_a_delta_says_what_it_gives_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    before = {"weight": torch.arange(4.0)}
    save_delta(before, {"weight": torch.zeros(4)}, tmp_path / "delta.safetensors")
    assert kinds(tmp_path / "delta.safetensors") == {"delta"}
    assert b"gives the model from before unlearning back" in (tmp_path / "delta.safetensors").read_bytes()
    assert run_doctor(tmp_path / "delta.safetensors", capsys)[0] == 1


def test_own_answers_and_logged_metrics_are_named(tmp_path: Path) -> None:
    row = {"question": ROW.input, "answer": ROW.output}
    files = {
        "retain.jsonl": json.dumps({**row, **OWN_ANSWER}) + "\n",
        "000000.json": json.dumps([{**row, "ended": True}]),
        "record.jsonl": json.dumps({"body": {"event": "verdict"}}) + "\n\n",
        "metrics.csv": "epoch,step,unlearn/loss\n0,0,1.5\n",
        "mine.csv": "step,loss\n0,1.5\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = {finding.file.name: (finding.kind, finding.serious) for finding in doctor(tmp_path)}
    assert found == {
        "retain.jsonl": ("answers", True),
        "000000.json": ("answers", True),
        "metrics.csv": ("metrics", False),
    }


def test_other_weights_and_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    weights = {"head.weight": torch.ones(2, 2), "body.weight": torch.zeros(3)}
    save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert doctor(tmp_path) == []
    torch.save(weights | {"head.weight": torch.eye(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "merges.txt").write_text("a b")
    found = [(f.file.name, f.place, f.kind, f.serious) for f in doctor(tmp_path)]
    assert found == [
        ("pytorch_model.bin", "head.weight", "starting weights", True),
        ("model.gguf", "", "other", False),
    ]


def test_other_peoples_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Foreign, cut and unsafe files give one sentence; a plain state dict holds nothing."""
    torch.save(LitNet().state_dict(), tmp_path / "weights.pt")
    assert doctor(tmp_path / "weights.pt") == []
    run = trainer(max_epochs=1)
    run.fit(_Plain(), torch.utils.data.DataLoader(indexed(8, 1)))
    run.save_checkpoint(tmp_path / "plain.ckpt")
    cut = (tmp_path / "plain.ckpt").read_bytes()[:900]
    torch.save({"state_dict": {}, "x": Path("a")}, tmp_path / "unsafe.ckpt")
    damaged = {
        "cut.ckpt": cut,
        "text.ckpt": b"hello",
        "empty.ckpt": b"",
        "cut.safetensors": b"\x10",
        "cut.json": b'{"a',
        "cut.jsonl": b'{"a": 1}\n{"a',
    }
    for name, data in {**damaged, "a.zzz": b""}.items():
        (tmp_path / name).write_bytes(data)
        code, out, err = run_doctor(tmp_path / name, capsys)
        assert (code, out) == (2, ""), name
        assert name in err
        assert len(err.splitlines()) == 1, err
    assert run_doctor(tmp_path / "unsafe.ckpt", capsys)[0] == 2
    assert run_doctor(tmp_path / "missing.ckpt", capsys)[0] == 2
    (tmp_path / "foreign.json").write_text(json.dumps({"before": 1}))
    assert doctor(tmp_path / "foreign.json") == []


class _Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def training_step(self, batch: Any, _: int) -> Any:
        return self.net(torch.ones(1, 2)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)
