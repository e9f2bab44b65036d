"""Reports in loggers, read back from what the loggers have written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_unlearn.report.loggers import log_report
from tests.language.test_monitor import records
from tests.report.reports import SECRET, full_report

NUMBERS = {
    "report/effectiveness/extraction strength (strict)": 0.071,
    "report/effectiveness/kappa at int4": 0.682,
}


@pytest.mark.parametrize("show", [False, True])
def test_a_wandb_run_read_back_has_summary_tables_and_images(show: bool, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger = WandbLogger(offline=True, save_dir=tmp_path, project="test")
    log_report(logger, full_report(), step=7, show_text=show)
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    found = list(records(logger))
    history: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for record in found:
        for part, into in ((record.history.item, history), (record.summary.update, summary)):
            into |= {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in part}
    for name, value in NUMBERS.items():
        assert history[name] == summary[name] == value
    assert summary["report/verdict"] == "suppressed but recoverable"

    table = json.loads((files / history["report/measurements.path"]).read_text())
    assert ["effectiveness", "activation noise", "", "not run", "–", "", "–", "–", "", "needs --depth full"] in table[
        "data"
    ]
    answers = json.loads((files / history["report/quality/answers.path"]).read_text())
    assert answers["columns"] == ["set", "input", "expected", "before", "after", "retrained"]
    text = (files / history["report/quality/answers.path"]).read_text()
    assert (SECRET in text) == show
    assert (files / history["report/robustness/relearning-in-domain.filenames"][0]).exists()
    assert (files / history["report/robustness/accuracy.filenames"][0]).exists()
    assert (files / history["report/robustness/accuracies.filenames"][0]).exists()
    values = json.loads((files / history["report/robustness/accuracies-values.path"]).read_text())
    assert values["columns"] == ["erased", "mosaic", "ember", "disk"]
    assert values["data"] == [["none", "1", "0.975", "0.5"], ["mosaic", "0", "", "0.25"]]
    assert ("report/quality/drawings.filenames" in history) == show


def test_a_csv_logger_gets_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    log_report(logger, full_report(), step=7)
    logger.save()
    folder = Path(logger.log_dir)
    with (folder / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {name: float(row[name]) for name in NUMBERS} == NUMBERS
    assert "needs --depth full" in (folder / "report-measurements.csv").read_text()
    assert "Basil" not in (folder / "report-quality-answers.csv").read_text()
    for name in ("relearning-in-domain", "accuracy", "accuracies"):
        assert "<svg" in (folder / f"report-robustness-{name}.svg").read_text()
    assert (folder / "report-robustness-accuracies-values.csv").read_text().endswith("mosaic,0,,0.25\n")


def test_tensorboard_gets_texts_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    log_report(logger, full_report(), step=7, show_text=True)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = events.Tags()
    assert set(NUMBERS) <= set(tags["scalars"])
    assert {
        *(f"report/robustness/{name}" for name in ("relearning-in-domain", "accuracy", "accuracies")),
        "report/quality/drawings/0",
    } <= set(tags["images"])
    assert "report/quality/answers/text_summary" in tags["tensors"]


def test_a_logger_of_another_kind_gets_the_numbers() -> None:
    from lightning.pytorch.loggers.logger import Logger

    class Own(Logger):
        name, version = "own", 0

        def __init__(self) -> None:
            self.logged: dict[str, float] = {}

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.logged |= metrics

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    logger = Own()
    log_report(logger, full_report())
    assert logger.logged == NUMBERS
