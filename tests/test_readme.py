"""Every command and every snippet of the README runs, from where its reader stands: make in a clone, the rest not."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.reader import talkative, write_reader
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
import json, os, sys
from lightning_unlearn.cli.main import main

for folder, words in json.loads(sys.argv[1]):
    print("$", *words, file=sys.stderr, flush=True)
    os.chdir(folder)
    sys.path.insert(0, folder)
    try:
        exec(words[2]) if words[0] == "python" else main(words[1:])
    except SystemExit as end:
        assert not end.code, end.code
"""


def shortened(words: list[str], model: Path) -> list[str]:
    """A command, for a few steps on a small model."""
    if words[1] == "fit":
        words = [*words, f"--model.init_args.model={model}", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
        return [*words, "--trainer.devices=1", "--trainer.strategy=auto"]
    if words[1] != "forget":
        return words
    return [*words, "--accelerator=cpu", "--max_steps=2", *(["--depth=quick"] if "--model" in words else [])]


@pytest.fixture(scope="module")
def said(tiny_lm: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[str], str]]:
    """Each command and what it says: those of a block in the reader's folder, with what pip installs."""
    chat_model = talkative(tiny_lm, tmp_path_factory.mktemp("talkative"))
    runs, files = [], write_reader(tmp_path_factory.mktemp("files"), chat_model)
    for block in blocks("bash"):
        folder = shutil.copytree(files, tmp_path_factory.mktemp("reader") / "here", symlinks=True)
        for words in map(shlex.split, commands(block)):
            if words[0] in ("lightning-unlearn", "python"):
                runs.append((str(folder), shortened(words, tiny_lm)))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(runs)],
        cwd=tmp_path_factory.mktemp("start"),
        env=os.environ | {"PYTHONPATH": str(installed), "XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("config"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    _, *parts = re.split(r"^\$ .*\n", done.stdout, flags=re.MULTILINE)
    return [(words, part) for (_, words), part in zip(runs, parts, strict=True)]


SAYS = {
    "fit": r"`max_steps=2` reached",
    "forget": r"This was a dry run|Check the record",
    "verify-record": r"record\.jsonl is intact\.",
}


@pytest.mark.slow
def test_commands_of_the_package_run(said: list[tuple[list[str], str]]) -> None:
    assert {words[1] for words, _ in said if words[0] != "python"} == {"fit", "forget", "verify-record"}
    for words, text in said:
        if words[0] != "python":
            assert re.search(SAYS[words[1]], text), (words, text)


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
            assert words[0] in ("lightning-unlearn", "python"), command


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
