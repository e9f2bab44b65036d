"""Files and folders are whole or absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_unlearn.core.files import give_usual_mode, replacing, sha256, write_text


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, *inside: str) -> None:
    """Fail while a file is written, or a file of a folder."""
    with replacing(path) as part:
        if inside:
            part.mkdir()
        part.joinpath(*inside).write_text("half")
        raise OSError("disk full")


@pytest.mark.parametrize("name", ["a.txt", "Übung – 遗忘 🙂.txt", "a.b.part", ".hidden"])
def test_a_file_takes_the_place_of_the_older_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / name
    for text in ("one\n", "two\r\n ü"):
        write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    assert listed(path.parent) == [name]


def test_weights_can_be_read_by_whoever_can_read_other_files(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0o600)  # as safetensors makes them
    (tmp_path / "config.json").write_text("{}")
    give_usual_mode(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_crash_in_the_body_leaves_the_older_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert path.read_text() == "old"
    assert listed(tmp_path) == ["a.txt"]


def test_a_reader_sees_the_older_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_crash_before_there_was_a_file_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        write_half(tmp_path / "a.txt")
    assert listed(tmp_path) == []


def test_a_folder_takes_the_place_of_the_older_one_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for generation in ("old", "new"):
        with replacing(path) as part:
            (part / "deep").mkdir(parents=True)
            (part / "deep" / f"{generation}.bin").write_bytes(b"x")
            assert not (path / "deep" / "new.bin").exists()
    assert listed(path / "deep") == ["new.bin"]
    assert listed(tmp_path) == ["model"]


def test_a_crash_while_a_folder_is_written_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path, "weights")
    assert (path / "weights").read_text() == "old"
    assert listed(tmp_path) == ["model"]


def test_what_a_killed_process_of_the_same_number_left_is_not_in_the_new_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "model") as part:
        name = part.name
        part.mkdir()
    (tmp_path / name).mkdir()
    (tmp_path / name / "stray").touch()
    with replacing(tmp_path / "model") as part:
        part.mkdir()
        (part / "weights").touch()
    assert listed(tmp_path / "model") == ["weights"]
    assert listed(tmp_path) == ["model"]


def test_sha256_is_of_the_contents_one_after_another(tmp_path: Path) -> None:
    large = bytes(range(256)) * 10_000  # more than is read at a time
    for name, content in (("a", large), ("b", b"end")):
        (tmp_path / name).write_bytes(content)
    assert sha256(tmp_path / "a", tmp_path / "b") == hashlib.sha256(large + b"end").hexdigest()
    assert sha256() == hashlib.sha256().hexdigest()
