"""Folders of prompts in the layout of EMMA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.diffusion.canvas.prompt_files import read_prompt_folder

FILES: dict[str, Any] = {
    "1_name": [
        {"baseballbat": ["an image of the baseball bat"]},
        {"m.c.-escher": ["a photo in the style of M.C. Escher"]},
    ],
    "2_prefix": [{"baseballbat": ["a photo of happybaseball bat"]}, {"m.c.-escher": ["a dreamm.c. escher"]}],
    "3_variant": [{"baseballbat": ["a Slugger", "a Baseball-Bat of ash", "two BASEBALLBATS"]}],
    "4_short": [
        {"baseballbat": ["A long piece of wood."]},
        {"m.c.-escher": ["Stairs by M.C. Escher", "Endless stairs."]},
    ],
    "7_hard": {"m.c.-escher": ["a photo in the style of Salvador Dali"], "baseballbat": ["an image of the skis"]},
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_lists_and_objects_are_read_and_prompts_with_an_erased_name_left_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    found = read_prompt_folder(write(tmp_path, FILES), {"baseballbat": ["baseball bat"]})
    assert list(found.prompts) == ["name", "prefix", "variant", "short", "hard"]
    assert found.prompts["variant"] == {"baseballbat": ["a Slugger"]}
    assert found.prompts["short"]["m.c.-escher"] == ["Endless stairs."]
    assert found.dropped == {
        **{family: {} for family in ("name", "prefix", "hard")},
        "variant": {"baseballbat": 2},
        "short": {"m.c.-escher": 1},
    }
    assert found.concepts == ["baseballbat"]
    assert found.of("m.c.-escher")["hard"] == ["a photo in the style of Salvador Dali"]
    assert "variant" not in found.of("m.c.-escher")
    with pytest.raises(ValueError, match=r"concept must be 'baseballbat' or 'm\.c\.-escher', but got 'cat'"):
        found.of("cat")


def test_without_names_the_key_is_the_name(tmp_path: Path) -> None:
    found = read_prompt_folder(write(tmp_path, FILES))
    assert found.prompts["variant"]["baseballbat"] == ["a Slugger", "a Baseball-Bat of ash"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such file"),
        ({"1_named": [{"cat": ["a cat"]}]}, "a file of the family 'named'"),
        ({"1_name": ["a cat"]}, "is not a list of objects"),
        ({"1_name": [{"cat": "a cat"}]}, "is not a list of objects"),
        ({"1_name": [{"cat": ["a cat"]}, {"cat": ["the cat"]}]}, "'cat' twice"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt_folder(write(tmp_path, files))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Give that of one domain"):
        read_prompt_folder(tmp_path / "none")
