"""Every command and every snippet of the README runs, from where its reader stands: make in a clone, the rest not."""

from __future__ import annotations

import json
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


# The commands run one after another, each in its folder: a process of its own for each would spend its time on imports.
DRIVER = """
import glob, json, os, sys
from lightning_unlearn.cli.main import main

for folder, words in json.loads(sys.argv[1]):
    print("$", *words, file=sys.stderr, flush=True)
    os.chdir(folder)
    main([glob.glob(word)[0] if "*" in word else word for word in words])
"""


def shortened(words: list[str], model: Path) -> list[str]:
    """The arguments of a command, for a few steps on a small model."""
    if words[0] == "fit":
        words = [*words, f"--model.init_args.model={model}", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
        return [*words, "--trainer.devices=1", "--trainer.strategy=auto"]
    assert words[0] == "export", f"This test cannot run the README's command {words!r}."
    path = Path(words[words.index("--ckpt_path") + 1])  # the short run above has made fewer steps than the README's
    return [str(path.parent / "*.ckpt") if word == str(path) else word for word in words]


@pytest.fixture(scope="module")
def said(
    tiny_lm: Path, tiny_sd: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[list[str], str]]:
    """Each command of the package and what it says: those of a block in an empty folder, with what pip installs."""
    runs = []
    for block in blocks("bash"):
        folder = tmp_path_factory.mktemp("reader")
        for words in map(shlex.split, commands(block)):
            if words[0] == "lightning-unlearn":
                runs.append((str(folder), shortened(words[1:], tiny_sd if "[diffusion" in block else tiny_lm)))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(runs)],
        cwd=tmp_path_factory.mktemp("start"),
        env=os.environ | {"PYTHONPATH": str(installed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    _, *parts = re.split(r"^\$ .*\n", done.stdout, flags=re.MULTILINE)
    return [(words, part) for (_, words), part in zip(runs, parts, strict=True)]


def test_commands_of_the_package_run(said: list[tuple[list[str], str]]) -> None:
    assert {words[0] for words, _ in said} == {"fit", "export"}
    for words, text in said:
        assert ("`max_steps=2` reached" if words[0] == "fit" else "Wrote") in text, words


@pytest.mark.parametrize("number", range(len(blocks("bash"))))
def test_other_commands_are_there(number: int) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for command in commands(blocks("bash")[number]):
        words = shlex.split(command)
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif words[:2] == ["pip", "install"]:
            for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", command))):
                assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra
        else:
            assert words[0] == "lightning-unlearn", f"This test cannot run the README's command {command!r}."


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
