"""Configuration files by name, in a clone and in an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_unlearn.cli.configs import find_config, shipped_configs, with_shipped

ROOT = Path(__file__).parents[2]
NPO = ROOT / "callbacks" / "objectives" / "npo.yaml"


@pytest.mark.parametrize("name", ["callbacks/objectives/npo.yaml", "objectives/npo", "objectives/npo.yaml", "npo"])
def test_a_shipped_file_is_found_by_the_end_of_its_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(name)) == NPO
    assert with_shipped(["fit", "--config", name, f"--config={name}", "-c", name, "--x", name]) == [
        *("fit", "--config", str(NPO), f"--config={NPO}", "-c", str(NPO), "--x", name)
    ]


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("npo.yaml").write_text("trainer: {}")
    assert find_config("npo.yaml") == "npo.yaml"
    assert find_config("trainer: {max_steps: 1}") == "trainer: {max_steps: 1}"


def test_no_and_several_files_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file objectives/np0.*These do: objectives/npo"):
        find_config("objectives/np0")
    with pytest.raises(ValueError, match=r"monitor could be any of classification/monitor, language/monitor"):
        find_config("monitor")
    with pytest.raises(FileNotFoundError, match=r"no file my/npo\.yaml"):
        find_config("my/npo.yaml")  # a folder of one's own that is not there


def test_the_wheel_has_the_files_and_finds_them(installed: Path, tmp_path: Path) -> None:
    """Every fragment, and every example whose classes are in the wheel."""
    alone = [path for path in shipped_configs() if "class_path: examples." not in path.read_text()]
    names = {path.relative_to(ROOT).as_posix() for path in alone}
    configs = installed / "lightning_unlearn" / "configs"
    assert {path.relative_to(configs).as_posix() for path in configs.rglob("*") if path.is_file()} == names

    words = ["fit", "--config", "examples/capitals.yaml", "--config", "objectives/npo", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_unlearn", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == ["lightning_unlearn.NPO"]
    forget = Path(config["data"]["init_args"]["forget"])
    assert forget.is_file()
    assert forget.is_relative_to(installed)
