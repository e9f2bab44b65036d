"""Every command and every snippet of the README runs, from where its reader stands: make in a clone, the rest not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.user_module import LitNet, loaders

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run(command: str, tiny_lm: Path, installed: Path, folder: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[:2] == ["pip", "install"]:
        pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", command))):
            assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra
    elif words[:2] == ["lightning-unlearn", "fit"]:
        quick = [f"--model.init_args.model={tiny_lm}", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
        quick += [f"--trainer.default_root_dir={folder}", "--trainer.devices=1", "--trainer.strategy=auto"]
        done = subprocess.run(
            [sys.executable, "-m", "lightning_unlearn", *words[1:], *quick],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "`max_steps=2` reached" in done.stderr
    else:
        pytest.fail(f"The README has a command that this test can't run: {command}")


@pytest.mark.parametrize("command", commands())
def test_command(command: str, tiny_lm: Path, installed: Path, tmp_path: Path) -> None:
    run(command, tiny_lm, installed, tmp_path)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_snippet(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"MyClassifier": LitNet, "my_loaders": loaders(), "L": L}
    run = L.Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_checkpointing=False)
    run.fit(LitNet(), loaders()["retain"])
    run.save_checkpoint(tmp_path / "trained.ckpt")
    exec(compile(blocks("python")[number], "README.md", "exec"), names)


def test_there_is_something_to_run() -> None:
    assert len(commands()) >= 4
    assert len(blocks("python")) >= 1


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
