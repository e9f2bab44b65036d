"""The view of a W&B project: its panels look for names that runs log, and what runs log has a panel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from lightning_unlearn import (
    ClassifierMonitor,
    LanguageDataModule,
    NegGradPlus,
    RandomMask,
    UnlearnMonitor,
    dashboard,
    log_report,
)
from lightning_unlearn.cli.main import main
from tests.classification.test_monitor import fitted
from tests.language.test_monitor import echo, records, unlearn
from tests.report.reports import full_report

pytest.importorskip("wandb_workspaces")


def sections(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel for panel in section["panels"]] for section in found}


def panels_of(view: dict[str, Any], key: str) -> set[str]:
    """The sections with a panel that shows what is logged as ``key``."""
    shown = set()
    for name, panels in sections(view).items():
        for panel in panels:
            config = panel["config"]
            if config.get("metricRegex") and re.search(config["metricRegex"], key):
                shown.add(name)
            if key in (config.get("mediaKeys") or []) or f'"{key}"' in json.dumps(config.get("panel2Config", "")):
                shown.add(name)
    return shown


def logged(logger: WandbLogger) -> set[str]:
    """Names of the numbers, tables and images in an offline run."""
    names = set()
    for record in records(logger):
        if record.WhichOneof("record_type") == "history":
            names |= {(".".join(item.nested_key) or item.key).split(".")[0] for item in record.history.item}
    return {name for name in names if "/" in name and not name.startswith("trainer/")}


@pytest.fixture(scope="module")
def view() -> dict[str, Any]:
    return json.loads(dashboard("unlearning")._to_model().model_dump_json(by_alias=True))


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    return WandbLogger(offline=True, save_dir=tmp_path, project="test")


def test_all_that_a_language_run_logs_has_a_panel(
    view: dict[str, Any],
    logger: WandbLogger,
    tiny_lm: Path,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
) -> None:
    data = LanguageDataModule(forget_rows, retain_rows, {"heldout": retain_rows[:1]}, batch_size=2)
    monitor = UnlearnMonitor(generate=echo, show_answers=True)
    unlearn(tiny_lm, data, monitor, RandomMask(0.5), logger=logger, log_every_n_steps=1)
    log_report(logger, full_report())
    shown = {key: panels_of(view, key) for key in logged(logger) if not key.startswith("report/")}
    assert shown == {
        **{f"eval/forget_{measure}": {"Forget"} for measure in ("nll", "accuracy")},
        **{f"eval/retain_{measure}": {"Retain"} for measure in ("nll", "accuracy")},
        **{f"eval/heldout_{measure}": {"Held out"} for measure in ("nll", "accuracy")},
        **{f"unlearn/{part}": {"Training"} for part in ("loss", "forget", "forget_nll", "retain")},
        "eval/generations": {"Answers"},
        **{f"eval/{measure}_curves": {"Images"} for measure in ("nll", "accuracy")},
        "mask/density": {"Masks"},
        "mask/by_layer": {"Masks"},
    }
    assert panels_of(view, "report/measurements") == {"Evidence"}


def test_all_that_a_run_of_a_classifier_logs_has_a_panel(view: dict[str, Any], logger: WandbLogger) -> None:
    fitted(ClassifierMonitor(), method=NegGradPlus(p=0.7), logger=logger, log_every_n_steps=1)
    shown = {key: panels_of(view, key) for key in logged(logger)}
    assert shown.pop("eval/forget/mia") == {"Forget", "Attacks"}
    assert {key: names for key, names in shown.items() if not key.startswith("unlearn/")} == {
        "eval/forget/ua": {"Forget"},
        "eval/retain/ra": {"Retain"},
        "eval/test/ta": {"Held out"},
        "eval/outcome": {"Evidence"},
    }
    assert all(names == {"Training"} for key, names in shown.items() if key.startswith("unlearn/"))


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("eval/asr", "Attacks"),
        ("eval/pre_asr", "Attacks"),
        ("eval/adversarial_prompts", "Attacks"),
        ("robustness/table", "Attacks"),
        ("robustness/reconstructions", "Images"),
        ("eval/conversations", "Answers"),
        ("audit/measurements", "Evidence"),
        ("eval/2/forget_nll", "Forget"),
        ("smooth/radius", "Training"),
    ],
)
def test_what_other_callbacks_log_has_a_panel(view: dict[str, Any], key: str, section: str) -> None:
    assert section in panels_of(view, key)


def test_sets_images_and_settings_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "view.json"
    options = ["--project=p", "--entity=e", "--name=Mine", "--heldout=[capitals]", "--images=[samples]"]
    main(["dashboard", *options, f"--output={path}"])
    assert capsys.readouterr().out == f"Wrote {path}\n"
    view = json.loads(path.read_text())
    assert (view["project"], view["entity"], view["displayName"]) == ("p", "e", "Mine")
    assert panels_of(view, "eval/capitals_nll") == {"Held out"}
    assert panels_of(view, "eval/general_nll") == set()
    assert panels_of(view, "samples") == {"Images"}


def test_without_a_login_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises((RuntimeError, SystemExit), match=r"can't be saved.*wandb login.*--output"):
        main(["dashboard", "--project=p", "--entity=e"])
