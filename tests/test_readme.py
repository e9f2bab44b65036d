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


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run(command: str, model: Path, installed: Path, folder: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    if words[:2] == ["pip", "install"]:
        pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", command))):
            assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra
        return
    assert words[0] == "lightning-unlearn", f"This test cannot run the README's command {command!r}."
    if words[1] == "fit":
        words += [f"--model.init_args.model={model}", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
        words += ["--trainer.devices=1", "--trainer.strategy=auto"]
    elif words[1] == "export":  # the short run above has made fewer steps than the README's
        (checkpoint,) = folder.glob(str(Path(words[words.index("--ckpt_path") + 1]).parent / "*.ckpt"))
        words[words.index("--ckpt_path") + 1] = str(checkpoint)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_unlearn", *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("`max_steps=2` reached" if words[1] == "fit" else "Wrote") in done.stderr + done.stdout


@pytest.mark.parametrize("number", range(len(blocks("bash"))))
def test_block(number: int, tiny_lm: Path, tiny_sd: Path, installed: Path, tmp_path: Path) -> None:
    """The commands of a block one after another, in an empty folder, with what pip installs."""
    block = blocks("bash")[number]
    for command in commands(block):
        run(command, tiny_sd if "[diffusion" in block else tiny_lm, installed, tmp_path)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_snippet(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"MyClassifier": LitNet, "my_loaders": loaders(), "L": L}
    run = L.Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_checkpointing=False)
    run.fit(LitNet(), loaders()["retain"])
    run.save_checkpoint(tmp_path / "trained.ckpt")
    exec(compile(blocks("python")[number], "README.md", "exec"), names)


def test_there_is_something_to_run() -> None:
    assert sum(len(commands(block)) for block in blocks("bash")) >= 4
    assert len(blocks("python")) >= 1


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
