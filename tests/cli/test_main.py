"""The table of commands, and what each imports."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import lightning as L
import pytest

from lightning_unlearn.cli import extras
from lightning_unlearn.cli import main as module
from lightning_unlearn.cli.extras import NEEDS
from lightning_unlearn.cli.main import main
from lightning_unlearn.cli.quiet import quiet_logs

HEAVY = tuple(
    f"lightning_unlearn.{part}"
    for part in ("demos", "benchmarks", "report.html", "diffusion.attacks", "diffusion.judges", "diffusion.metrics")
)


def test_every_command_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    usage = capsys.readouterr().out
    for command, target in module._COMMANDS.items():
        assert f"\n  {command}" in usage
        resolved = module._resolved(target)
        assert all(callable(part) for part in (resolved.values() if isinstance(resolved, dict) else [resolved]))
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0


def test_help_imports_no_demo_benchmark_attack_or_image_metric(tmp_path: Path) -> None:
    """One process asks for the help of one after another; what it has loaded grows."""
    code = """
import json, sys
from lightning_unlearn.cli.main import main

for words in (["--help"], ["doctor"], ["export", "--help"], ["fit", "--help"]):
    try:
        main(words)
    except SystemExit:
        pass
    print("\\n" + json.dumps([" ".join(words), sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    assert list(loaded) == ["--help", "doctor", "export --help", "fit --help"]
    for words, names in loaded.items():
        assert "lightning_unlearn.cli.main" in names
        assert [name for name in names if name.startswith(HEAVY)] == []
        assert ("torch" in names) == (words != "--help")
        assert ("lightning" in names) == (words not in ("--help", "doctor"))  # doctor may have to warn of it


def test_the_version_is_said_without_loading_anything(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"lightning-unlearn {version('lightning-unlearn')}\n"


@pytest.mark.parametrize(("word", "said"), [("aduit", "Did you mean audit?"), ("qqq", "There are attack, attack-inv")])
def test_an_unknown_command_names_the_others(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([word])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lightning-unlearn: there is no command '{word}'. {said}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--bogus"], "lightning-unlearn demo: unrecognized arguments: --bogus\n"),
        (["audit", "--original", "x"], "lightning-unlearn audit: the following arguments are required: unlearned\n"),
        (["fit", "--bogus=1"], " fit: unrecognized arguments: --bogus=1\n"),
        (["fit", "--trainer.max_steps=x"], 'fit: Parser key "trainer.max_steps":\n  Expected a'),
        (["fit", "--model.class_path=nowhere.Net"], "No module named 'nowhere'"),
    ],
)
def test_a_wrong_argument_is_said_without_the_list_of_all_options(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.splitlines()[-1].startswith("Options: ")
    assert error.count("\n") <= 8


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_names_all_extras_that_it_lacks_at_once(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command.split()
    assert words[0] in {*module._COMMANDS, *module._LIGHTNING, *module._OWN_PARSERS}
    declared = {name: {part.name for part in parts} for name, parts in extras.extras().items()}
    for name, packages in NEEDS[command].items():
        brought = declared[name] | {"safetensors" for part in declared[name] if part == "transformers"}
        assert set(packages) <= brought, name
    monkeypatch.setattr(extras, "installed", lambda name: None)
    with pytest.raises(SystemExit) as done:
        main(words)
    wanted = {**NEEDS.get(words[0], {}), **NEEDS[command]}
    assert str(done.value.code).startswith(f"lightning-unlearn {words[0]} needs ")
    assert str(done.value.code).endswith(f'pip install "lightning-unlearn[{",".join(wanted)}]"')
    assert "\n" not in str(done.value.code)


def test_all_other_commands_work_without_an_extra() -> None:
    """A benchmark that is not listed would begin its run and fail far into it."""
    listed = {command.split()[0] for command in NEEDS}
    assert {*module._COMMANDS} - listed == {"export", "compare", "record", "verify-record", "export-card", "doctor"}


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where Lightning has caught it, which then exits with 1."""

    def by_lightning() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    def directly() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "quiet_logs", lambda: None)
    for interrupted in (by_lightning, directly):
        monkeypatch.setattr(module, "main", interrupted)
        with pytest.raises(SystemExit) as done:
            module.run()
        assert done.value.code == 130
    assert capsys.readouterr().err == "lightning-unlearn: interrupted.\n" * 2


def test_logs_have_no_bars_of_other_libraries_and_no_advertisements(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(log, "filters", [])
    monkeypatch.setattr(warnings, "filters", [*warnings.filters])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    quiet_logs()
    assert os.environ["TQDM_DISABLE"] == "1"  # which tqdm reads when it is imported
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"  # a choice of the user stays
    with caplog.at_level(logging.INFO, log.name):
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert "GPU available" in caplog.text
    assert "Tip" not in caplog.text


def test_a_module_of_an_extra_that_is_missing_is_said_with_the_line_that_installs_it() -> None:
    told = module.foreseen(ModuleNotFoundError("No module named 'sklearn.metrics'", name="sklearn.metrics"))
    assert told is not None
    assert "scikit-learn" in told
    assert 'pip install "lightning-unlearn[' in told
    assert module.foreseen(ModuleNotFoundError("No module named 'users_own'", name="users_own")) is None
