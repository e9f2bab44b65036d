"""Sweeps of W&B: their files are what W&B takes, and the commands that an agent makes of them run."""

from __future__ import annotations

import json
import random
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_unlearn
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import _COMMANDS
from tests.language.test_monitor import records

ROOT = Path(__file__).parents[2]
SWEEPS = [ROOT / "examples/sweep.yaml", *sorted(ROOT.glob("examples/sweeps/*.yaml"))]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-unlearn"])


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def agent_command(sweep: dict[str, Any], draw: random.Random) -> list[str]:
    """The command of one run, made with what the agent itself makes it of."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {
        name: {"value": draw.choice(p["values"]) if "values" in p else draw.uniform(p["min"], p["max"])}
        for name, p in sweep["parameters"].items()
    }
    words = utils.create_sweep_command(list(sweep["command"]))
    arguments = utils.create_sweep_command_args({"args": values})["args"]
    return [word for part in words for word in (arguments if part == "${args}" else [part])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_a_sweep_keeps_to_the_schema_of_wandb(path: Path) -> None:
    """The schema is in the package ``sweeps``, which W&B publishes; `make` installs it without what it depends on."""
    jsonschema = pytest.importorskip("jsonschema")
    try:
        files = metadata.distribution("sweeps").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package sweeps is not installed")
    (schema,) = [file.locate() for file in files if file.name == "schema.json"]
    validator = jsonschema.Draft7Validator(json.loads(Path(str(schema)).read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(read(path))] == []
    assert list(validator.iter_errors({**read(path), "method": "guess"}))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_first_line_launches_a_command_of_ours(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(f"# wandb sweep {path.relative_to(ROOT)}\n")
    program, command, *words = read(path)["command"]
    assert program == "lightning-unlearn"
    assert command == "fit" or command in _COMMANDS
    assert words.count("${args}") == 1


def test_an_agents_run_trains_with_what_was_drawn_and_logs_the_metric(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sweep = read(ROOT / "examples/sweep.yaml")
    _, *words = agent_command(sweep, random.Random(0))
    small = [f"--model.init_args.model={tiny_lm}", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false"]
    here = [f"--trainer.logger.save_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path}"]
    cli = UnlearnCLI([*words, *small, *here, "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"])
    drawn = {
        key: float(value)
        for word in words
        if (found := re.fullmatch(r"--(.*\.[a-z_]+)=([\d.e-]+)", word))
        for key, value in [found.groups()]
    }
    (method,) = [c for c in cli.trainer.callbacks if isinstance(c, lightning_unlearn.SimNPO)]  # type: ignore[attr-defined]
    assert method.beta == drawn["trainer.callbacks.beta"]
    assert method.retain_weight == drawn["trainer.callbacks.retain_weight"]
    assert cli.model.hparams["lr"] == drawn["model.init_args.lr"]
    assert len(drawn) == len(sweep["parameters"])
    names = {
        ".".join(item.nested_key) or item.key
        for record in records(cli.trainer.logger)  # type: ignore[arg-type]
        for item in record.history.item
    }
    assert sweep["metric"]["name"] in names
