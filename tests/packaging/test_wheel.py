"""The wheel in a bare environment: every command, and the README followed to the letter.

``make test-wheel`` runs it: it needs a package index, a few gigabytes and several minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_unlearn.cli.main import _COMMANDS
from lightning_unlearn.language.packaged import HUB_MODEL
from tests.reader import talkative, write_reader

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    (title, block)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if not re.search(r"^make ", block, re.MULTILINE)  # of a clone
]

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables of a reader who has just installed the wheel without extras.

    `pip install "lightning-unlearn[...]"` finds the wheel, as it would in the index.
    """
    folder = tmp_path_factory.mktemp("bare")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=True)
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TQDM_DISABLE")}
    environment = keep | {
        "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_FIND_LINKS": f"{folder / 'dist'} {os.environ.get('PIP_FIND_LINKS', '')}".strip(),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_QUIET": "1",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }
    for what in ("torch", "lightning-unlearn"):  # torch alone first, so that nothing else chooses its build
        said(f"pip install {what}", folder, environment)
    yield environment
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def reader(bare: dict[str, str], tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's own files, and the hub's model in their cache: a tiny one, since there may be no network."""
    snapshot = Path(bare["HF_HOME"], "hub", f"models--{HUB_MODEL.replace('/', '--')}", "snapshots", "0" * 40)
    shutil.copytree(tiny_lm, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    chat_model = talkative(tiny_lm, tmp_path_factory.mktemp("talkative"))
    return write_reader(tmp_path_factory.mktemp("reader") / "files", chat_model)


def said(script: str, folder: Path, environment: dict[str, str], code: int | None = 0) -> str:
    """What a shell says that runs some lines and stops at the first that fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert code is None or done.returncode == code, f"{script}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", *_COMMANDS])
def test_a_command_says_in_a_line_or_two_what_is_missing(command: str, bare: dict[str, str], tmp_path: Path) -> None:
    """With the core dependencies alone; these tests come before those that install extras."""
    if command == "doctor":
        pytest.skip("doctor needs no extra")
    text = said(f"lightning-unlearn {command}", tmp_path, bare, code=None)
    assert "Traceback" not in text
    lines = text.splitlines()
    assert len(lines) <= 3, text
    assert re.search(r'pip install "lightning-unlearn\[[\w,-]+\]"|required|expected "subcommand"', text), text


def test_what_needs_no_extra_works(bare: dict[str, str], tmp_path: Path) -> None:
    assert said("lightning-unlearn --version", tmp_path, bare).startswith("lightning-unlearn ")
    assert 'pip install "lightning-unlearn[llm]"' in said("lightning-unlearn doctor", tmp_path, bare)
    said("lightning-unlearn callbacks copy objectives/npo --to callbacks", tmp_path, bare)
    assert (tmp_path / "callbacks" / "objectives" / "npo.yaml").is_file()


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_the_readme_to_the_letter(title: str, block: str, bare: dict[str, str], reader: Path, tmp_path: Path) -> None:
    here = shutil.copytree(reader, tmp_path / "here", symlinks=True)
    text = said(block, here, bare)
    assert "\r" not in text
    assert len(text.splitlines()) < 200
    print(text)


def test_the_three_doors_are_among_them() -> None:
    commands = [line for _, block in BLOCKS for line in block.splitlines()]
    for option in ("--model", "--checkpoint", "--pipeline"):
        assert any(line.startswith(f"lightning-unlearn forget {option}") for line in commands), option
